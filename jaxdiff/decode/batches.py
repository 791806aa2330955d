"""Many requests through few programs: batches of one shape, and a key for each request."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key

from jaxdiff.decode.api import pad_prompts

BUCKET = 32  # prompts are padded to a multiple of this, so that batches share compiled programs


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


def request_keys(seed: int, requests: Int[np.ndarray, " B"]) -> Key[Array, " B"]:
    """The key of each request of a run: the same in whatever batch it is decoded."""
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), jnp.asarray(requests))
