"""16 letters and digits once more: `cq7zz...>` -> `q7zz...`. All is known at once: one forward is enough."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from string import ascii_lowercase, digits

from jaxdiff.tasks.base import Problem, Split, puzzles

NAME = "copy"
LENGTH = 16


def problems(split: Split, seed: int) -> Iterator[Problem]:
    """As `tasks.base.puzzles`."""
    return puzzles(NAME, split, seed, _draw)


def verify(answer: str, problem: Problem) -> bool:
    return answer == problem.answer


def _draw(rng: Random) -> tuple[str, str]:
    text = "".join(rng.choices(ascii_lowercase + digits, k=LENGTH))
    return f"c{text}>", text
