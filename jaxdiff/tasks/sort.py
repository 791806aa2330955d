"""12 letters in the order of the alphabet: `ohello...>` -> `...`. A letter may stand several times."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from string import ascii_lowercase

from jaxdiff.tasks.base import Problem, Split, puzzles

NAME = "sort"
LENGTH = 12


def problems(split: Split, seed: int) -> Iterator[Problem]:
    """As `tasks.base.puzzles`."""
    return puzzles(NAME, split, seed, _draw)


def verify(answer: str, problem: Problem) -> bool:
    return answer == problem.answer


def _draw(rng: Random) -> tuple[str, str]:
    letters = rng.choices(ascii_lowercase, k=LENGTH)
    return f"o{''.join(letters)}>", "".join(sorted(letters))
