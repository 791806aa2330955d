"""Worksheets: a question lists expressions, the answer copies each and works it out.

    26 + 32; 7*8; 60/5        26 + 32 = 58; 7*8=56; 60/5=12

What worked answers ask for beside their wording: to find an expression among others, and to compute amid distraction.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from jaxdiff.tasks import drills
from jaxdiff.tasks.base import Problem, Split
from jaxdiff.types import InputError

NAME = "worksheets"
EXPRESSIONS = (2, 6)  # fewest and most


def problems(split: Split, seed: int) -> Iterator[Problem]:
    """An endless stream. Raises InputError for a held-out split, as `drills` does."""
    if split != "train":
        raise InputError(f"split: found {split!r}, but all {NAME} are for training; score another task")
    rng = Random(f"{NAME}/{seed}")
    while True:
        rows = [drills.expression(rng) for _ in range(rng.randint(*EXPRESSIONS))]
        question = "; ".join(left.rstrip(" =") for left, _ in rows)
        worked = "; ".join(left + value for left, value in rows)
        yield Problem(question=question, worked=worked, answer=worked)


def verify(answer: str, problem: Problem) -> bool:
    return answer.strip() == problem.answer
