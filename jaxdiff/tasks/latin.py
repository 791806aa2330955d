"""A latin square of 4 x 4, some cells given: `l1..43....2......>` -> the 16 cells, row by row.

No digit stands twice in a row or a column. Where several squares agree with what is given, each is right.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from random import Random

from jaxdiff.tasks.base import Problem, Split, puzzles

NAME = "latin"
SIDE, LENGTH = 4, 16
GIVEN = (2, 10)  # cells that are shown, at least and at most


def problems(split: Split, seed: int) -> Iterator[Problem]:
    """As `tasks.base.puzzles`."""
    return puzzles(NAME, split, seed, _draw)


def verify(answer: str, problem: Problem) -> bool:
    """Any latin square that agrees with the cells that are given."""
    given = problem.question[1:-1]
    return answer in _squares() and all(shown in (".", cell) for shown, cell in zip(given, answer, strict=True))


def _draw(rng: Random) -> tuple[str, str]:
    square = rng.choice(tuple(_squares()))
    shown = set(rng.sample(range(LENGTH), rng.randint(*GIVEN)))
    return f"l{''.join(cell if i in shown else '.' for i, cell in enumerate(square))}>", square


@functools.cache
def _squares() -> dict[str, None]:
    """All 576, in a fixed order."""
    rows = list(itertools.permutations("1234"))
    return {
        "".join(map("".join, square)): None
        for square in itertools.product(rows, repeat=SIDE)
        if all(len(set(column)) == SIDE for column in zip(*square, strict=True))
    }
