"""What the tasks share: problems, and the splits that they come in."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator
from random import Random
from typing import Literal, Protocol, runtime_checkable

from jaxdiff.types import InputError

Split = Literal["train", "validation", "test"]
TRIES = 2000  # to find a problem that is new; then there is taken to be none


@dataclasses.dataclass(frozen=True)
class Problem:
    question: str
    worked: str  # the reference answer with its steps, as the model is to write it
    answer: str  # what the verifier looks for
    template: int = 0
    continues: bool = False  # the question is a text to go on with, not a turn of a chat


@runtime_checkable
class Task(Protocol):
    """A data set with its verifier; a module of this folder is one. `LENGTH`: as `jaxdiff.tasks` says."""

    @property
    def NAME(self) -> str: ...

    @property
    def LENGTH(self) -> int: ...

    def problems(self, split: Split, seed: int) -> Iterator[Problem]: ...

    def verify(self, answer: str, problem: Problem) -> bool: ...


def check_training(name: str, split: Split) -> None:
    """Raises InputError for a held-out split of a task that has too few different problems to hold any out."""
    if split != "train":
        raise InputError(f"split: found {split!r}, but all {name} are for training; score another task")


def split_of(text: str) -> Split:
    """A hash of 0 mod 10 is test, of 1 validation, else train: no seed carries a held-out problem into training."""
    bucket = int.from_bytes(hashlib.sha256(text.encode()).digest(), "big") % 10
    return {0: "test", 1: "validation"}.get(bucket, "train")  # type: ignore[return-value]


def puzzles(name: str, split: Split, seed: int, draw: Callable[[Random], tuple[str, str]]) -> Iterator[Problem]:
    """A stream of distinct puzzles of one split, in the order that `seed` fixes; it ends when none is new.

    `draw` makes a question, which the answer follows without a turn, and a right answer; the question's hash decides
    the split.
    """
    rng, seen = Random(f"{name}/{seed}"), set[str]()
    while True:
        for _ in range(TRIES):
            question, answer = draw(rng)
            if split_of(question) == split and question not in seen:
                break
        else:
            return
        seen.add(question)
        yield Problem(question, answer, answer, continues=True)
