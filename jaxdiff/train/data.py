"""Batches as a pure function of the step: a run that restarts has no iterator state to lose.

Every row is [prompt, answer, end-of-text ...] filled with end-of-text up to its bucket's length, so that no row
needs padding: for a masked diffusion model the end-of-text padding is part of the answer.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
from jaxtyping import Bool, Int
from rich.console import Console
from rich.progress import track

from jaxdiff.checkpoint import Tokenizer
from jaxdiff.pytree import pytree
from jaxdiff.tasks import task
from jaxdiff.tasks.evaluate import prompt_ids
from jaxdiff.types import InputError


@dataclasses.dataclass(frozen=True)
class Bucket:
    """One shape of batch: rows of `task` that fit into `length` tokens, `rows` at a time, drawn with `weight`.

    A curriculum is a bucket that starts late or ends early: it is drawn in the steps from `since` on, before `until`.
    A packed bucket fills its rows with problems one after another, a line each, and masks answers alone: short drills
    are then learned amid others, as they occur in a text.
    """

    task: str
    length: int
    rows: int
    weight: float
    shortest: int = 0  # rows below this many tokens belong to another bucket
    since: int = 0
    until: int | None = None
    pack: bool = False

    def is_drawn(self, step: int) -> bool:
        return self.since <= step and (self.until is None or step < self.until)


def check_covered(buckets: tuple[Bucket, ...], steps: int) -> None:
    """Raises InputError where a run of so many steps has one in which no bucket is drawn."""
    for step in sorted({0, *(bucket.until or 0 for bucket in buckets)}):  # a gap begins with the run or behind a bucket
        if step < steps and not any(bucket.weight > 0 and bucket.is_drawn(step) for bucket in buckets):
            raise InputError(f"buckets: none is drawn in step {step}; let one start earlier, end later or weigh more")


NEVER_WRITTEN = 2**30  # in `Batch.order`: behind the teacher's end


@pytree
class Batch:
    """Rows of one shape; arrays of numpy, or of JAX within the compiled step.

    Attributes:
        answers: what may be masked: of a row with one problem all that follows the prompt.
        answer_lengths: with the first end-of-text; 0 for a packed row, which has no blocks.
        order: the teacher's forward that wrote each token, from 0; NEVER_WRITTEN for what it did not write. None where
            the answers are no teacher's.
    """

    tokens: Int[Any, "B T"]
    answers: Bool[Any, "B T"]
    prompt_lengths: Int[Any, " B"]
    answer_lengths: Int[Any, " B"]
    order: Int[Any, "B T"] | None = None


@dataclasses.dataclass(frozen=True)
class Row:
    """One problem in tokens. `order`: the teacher's forward that wrote each token from the answer's first on, those
    behind the answer too; none where the answer is no teacher's.
    """

    prompt: list[int]
    answer: list[int]
    order: list[int] = dataclasses.field(default_factory=list)


def training_rows(name: str, size: int, seed: int, tokenizer: Tokenizer) -> list[Row]:
    """`size` training problems of a task, with their reference answers; a progress bar goes to a terminal."""
    console, stream = Console(stderr=True), itertools.islice(task(name).problems("train", seed), size)
    bar = track(stream, f"{name}: tokenising", total=size, console=console, disable=not console.is_terminal)
    return [Row(prompt_ids(tokenizer, p), tokenizer.encode(p.worked)) for p in bar]


class Corpus:
    """Rows of each task, sorted into buckets; those of a teacher all have an order, others none."""

    def __init__(
        self, buckets: tuple[Bucket, ...], rows: dict[str, list[Row]], seed: int, tokenizer: Tokenizer
    ) -> None:
        """Raises InputError where a bucket stays empty."""
        self.buckets = buckets
        self._seed, self._rows = seed, rows
        self._eos, self._newline = tokenizer.eos_id, tokenizer.encode("\n")
        self._ordered = any(row.order for each in rows.values() for row in each)
        self._members = []
        for bucket in buckets:
            end = len(self._newline) if bucket.pack else 0
            lengths = [len(row.prompt) + len(row.answer) + end for row in rows[bucket.task]]
            members = [i for i, n in enumerate(lengths) if bucket.shortest <= n <= bucket.length]
            if not members:
                raise InputError(
                    f"bucket {bucket.task}/{bucket.length}: no problem fits, the shortest has {min(lengths)} tokens"
                )
            self._members.append(np.asarray(members))

    def batch(self, step: int) -> Batch:
        """The batch of a step in which a bucket is drawn; the same for the same step and seed, whatever ran before."""
        rng = np.random.default_rng([self._seed, step])
        weights = np.asarray([b.weight * b.is_drawn(step) for b in self.buckets])
        which = int(rng.choice(len(self.buckets), p=weights / weights.sum()))
        bucket = self.buckets[which]
        if bucket.pack:
            return self._packed(bucket, self._members[which], rng)
        tokens = np.full((bucket.rows, bucket.length), self._eos, np.int32)
        order = np.full(tokens.shape, NEVER_WRITTEN, np.int32) if self._ordered else None
        prompts, answers = np.zeros(bucket.rows, np.int32), np.zeros(bucket.rows, np.int32)
        for row, index in enumerate(rng.choice(self._members[which], bucket.rows)):
            drawn = self._rows[bucket.task][index]
            first, last = len(drawn.prompt), len(drawn.prompt) + len(drawn.answer)
            prompts[row], answers[row] = first, last - first + 1
            tokens[row, :last] = drawn.prompt + drawn.answer
            if order is not None:
                written = drawn.order[: bucket.length - first]
                order[row, first : first + len(written)] = written
        return Batch(tokens, np.arange(bucket.length)[None] >= prompts[:, None], prompts, answers, order)

    def _packed(self, bucket: Bucket, members: Int[np.ndarray, " n"], rng: np.random.Generator) -> Batch:
        tokens = np.full((bucket.rows, bucket.length), self._eos, np.int32)
        answers = np.zeros(tokens.shape, bool)
        for row in range(bucket.rows):
            at = 0
            while True:
                drawn = self._rows[bucket.task][rng.choice(members)]
                line = [*drawn.prompt, *drawn.answer, *self._newline]
                if at + len(line) > bucket.length:
                    break
                tokens[row, at : at + len(line)] = line
                first = at + len(drawn.prompt)
                answers[row, first : first + len(drawn.answer)] = True
                at += len(line)
        nothing = np.zeros(bucket.rows, np.int32)
        return Batch(tokens, answers, nothing, nothing)
