"""What a task is: a stream of problems for each split, and a verifier."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Literal, Protocol

Split = Literal["train", "validation", "test"]


@dataclasses.dataclass(frozen=True)
class Problem:
    question: str
    worked: str  # the reference answer with its steps, as the model is to write it
    answer: str  # what the verifier looks for
    template: int = 0
    continues: bool = False  # the question is a text to go on with, not a turn of a chat


class Task(Protocol):
    """A module of this folder."""

    NAME: str

    def problems(self, split: Split, seed: int) -> Iterator[Problem]: ...

    def verify(self, answer: str, problem: Problem) -> bool: ...
