"""Many requests through few programs: batches of one shape, and a key for each request."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import jax
import numpy as np
from jaxtyping import Array, Int, Key

from jaxdiff.decode.api import pad_prompts
from jaxdiff.decode.state import row_keys

BUCKET = 32  # prompts are padded to a multiple of this, so that batches share compiled programs
SAVES = 0.25  # of a queue's columns, for which a second width is worth its compiling


def batches(count: int, size: int) -> Iterator[Int[np.ndarray, " B"]]:
    """Numbers 0 to count - 1 in batches of one size; the last one repeats its own, so that no new shape compiles."""
    size = max(min(size, count), 1)
    for first in range(0, count, size):
        yield np.resize(np.arange(first, min(first + size, count)), size)


def pad_to_bucket(prompts: Sequence[Sequence[int]], fill: int, room: int) -> tuple[np.ndarray, np.ndarray]:
    """`pad_prompts` to a multiple of BUCKET, or to the `room` that the context leaves where that is less."""
    longest = max(len(prompt) for prompt in prompts)
    return pad_prompts(prompts, fill, multiple=min(-(-longest // BUCKET) * BUCKET, room))


def bucket(length: int, room: int) -> int:
    """The width that a prompt of `length` is padded to in a stream: BUCKET doubled until it fits, at most `room`.

    Few programs, and no prompt in twice the columns that it needs.
    """
    width = BUCKET
    while width < length:
        width *= 2
    return min(width, room)


def widths_of(lengths: Iterable[int], generated: int, room: int) -> tuple[int, ...]:
    """The widths that prompts of known lengths are padded to, ascending; each is a program to compile.

    A multiple of BUCKET, at most `room`, for the longest; a second one for the shorter prompts where it saves SAVES of
    all columns.
    """
    needed = [min(-(-length // BUCKET) * BUCKET, room) for length in lengths]
    longest = max(needed)

    def columns(narrow: int) -> int:
        return sum((narrow if width <= narrow else longest) + generated for width in needed)

    best = min(set(needed), key=columns)
    return (best, longest) if columns(best) <= (1 - SAVES) * columns(longest) else (longest,)


def request_keys(seed: int, requests: Int[np.ndarray, " B"]) -> Key[Array, " B"]:
    """The key of each request of a run: the same in whatever batch it is decoded."""
    return row_keys(jax.random.key(seed), np.asarray(requests, np.int32))
