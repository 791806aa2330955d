"""Batches as a pure function of the step: a run that restarts has no iterator state to lose.

Every row is [prompt, answer, end-of-text ...] filled with end-of-text up to its bucket's length, so that no row
needs padding: for a masked diffusion model the end-of-text padding is part of the answer.
"""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
from jaxtyping import Bool, Int
from rich.console import Console
from rich.progress import track

from jaxdiff.checkpoint import Tokenizer
from jaxdiff.tasks import task
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


@dataclasses.dataclass(frozen=True)
class Batch:
    tokens: Int[np.ndarray, "B T"]
    answers: Bool[np.ndarray, "B T"]  # what may be masked: of a row with one problem all that follows the prompt
    prompt_lengths: Int[np.ndarray, " B"]
    answer_lengths: Int[np.ndarray, " B"]  # with the first end-of-text; 0 for a packed row, which has no blocks


class Corpus:
    """Tokenised training problems of each task, sorted into buckets."""

    def __init__(self, buckets: tuple[Bucket, ...], sizes: dict[str, int], seed: int, tokenizer: Tokenizer) -> None:
        """Draws `sizes[name]` training problems of each task; a progress bar goes to a terminal.

        Raises InputError where a bucket stays empty.
        """
        self.buckets = buckets
        self._seed = seed
        self._eos, self._newline = tokenizer.eos_id, tokenizer.encode("\n")
        console = Console(stderr=True)
        self._rows: dict[str, list[tuple[list[int], list[int]]]] = {}
        for name, size in sizes.items():
            stream = itertools.islice(task(name).problems("train", seed), size)
            self._rows[name] = [
                (
                    tokenizer.encode(p.question) if p.continues else tokenizer.prompt(p.question),
                    tokenizer.encode(p.worked),
                )
                for p in track(
                    stream, f"{name}: tokenising", total=size, console=console, disable=not console.is_terminal
                )
            ]
        self._members = []
        for bucket in buckets:
            end = len(self._newline) if bucket.pack else 0
            lengths = [len(prompt) + len(answer) + end for prompt, answer in self._rows[bucket.task]]
            members = [i for i, n in enumerate(lengths) if bucket.shortest <= n <= bucket.length]
            if not members:
                raise InputError(
                    f"bucket {bucket.task}/{bucket.length}: no problem fits, the shortest has {min(lengths)} tokens"
                )
            self._members.append(np.asarray(members))

    def batch(self, step: int) -> Batch:
        """The batch of one step; the same for the same step and seed, whatever ran before.

        Raises InputError where no bucket covers the step.
        """
        rng = np.random.default_rng([self._seed, step])
        weights = np.asarray([b.weight * b.is_drawn(step) for b in self.buckets])
        if not weights.any():
            raise InputError(f"buckets: none is drawn in step {step}; let one start earlier or end later")
        which = int(rng.choice(len(self.buckets), p=weights / weights.sum()))
        bucket = self.buckets[which]
        if bucket.pack:
            return self._packed(bucket, self._members[which], rng)
        tokens = np.full((bucket.rows, bucket.length), self._eos, np.int32)
        prompts, answers = np.zeros(bucket.rows, np.int32), np.zeros(bucket.rows, np.int32)
        for row, index in enumerate(rng.choice(self._members[which], bucket.rows)):
            prompt, answer = self._rows[bucket.task][index]
            prompts[row], answers[row] = len(prompt), len(answer) + 1
            tokens[row, : len(prompt) + len(answer)] = prompt + answer
        return Batch(tokens, np.arange(bucket.length)[None] >= prompts[:, None], prompts, answers)

    def _packed(self, bucket: Bucket, members: Int[np.ndarray, " n"], rng: np.random.Generator) -> Batch:
        tokens = np.full((bucket.rows, bucket.length), self._eos, np.int32)
        answers = np.zeros(tokens.shape, bool)
        for row in range(bucket.rows):
            at = 0
            while True:
                prompt, answer = self._rows[bucket.task][rng.choice(members)]
                line = [*prompt, *answer, *self._newline]
                if at + len(line) > bucket.length:
                    break
                tokens[row, at : at + len(line)] = line
                answers[row, at + len(prompt) : at + len(prompt) + len(answer)] = True
                at += len(line)
        nothing = np.zeros(bucket.rows, np.int32)
        return Batch(tokens, answers, nothing, nothing)
