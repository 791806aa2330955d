"""8 of 12 letters, each at most once, in any order: every answer is as good as another, and parts of two make none.

`pqkxbzhdwlvcm>` -> `kcbxwlqm`. A model that is right draws each of 12!/4! answers alike: 24.2 bits or 16.8 nats, 8
letters that hang on each other.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from string import ascii_lowercase

from jaxdiff.tasks.base import Problem, Split, puzzles

NAME = "permutation"
SYMBOLS, LENGTH = 12, 8


def problems(split: Split, seed: int) -> Iterator[Problem]:
    """As `tasks.base.puzzles`."""
    return puzzles(NAME, split, seed, drawn)


def verify(answer: str, problem: Problem) -> bool:
    """Any 8 different letters of the question's."""
    letters = problem.question[1:-1]
    return len(answer) == LENGTH == len(set(answer)) and set(answer) <= set(letters)


def drawn(rng: Random, among: str = ascii_lowercase) -> tuple[str, str]:
    """A question of some letters, and a right answer."""
    letters = rng.sample(among, SYMBOLS)
    return f"p{''.join(letters)}>", "".join(rng.sample(letters, LENGTH))
