"""What the tasks share: problems, and the splits that they come in."""

from __future__ import annotations

import dataclasses
from typing import Literal

from jaxdiff.types import InputError

Split = Literal["train", "validation", "test"]


@dataclasses.dataclass(frozen=True)
class Problem:
    question: str
    worked: str  # the reference answer with its steps, as the model is to write it
    answer: str  # what the verifier looks for
    template: int = 0
    continues: bool = False  # the question is a text to go on with, not a turn of a chat


def check_training(name: str, split: Split) -> None:
    """Raises InputError for a held-out split of a task that has too few different problems to hold any out."""
    if split != "train":
        raise InputError(f"split: found {split!r}, but all {name} are for training; score another task")
