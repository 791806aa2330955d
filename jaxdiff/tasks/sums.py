"""Running sums modulo 7: `s3051...>` -> `3314...`. Each digit of the answer hangs on the one before it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from random import Random

from jaxdiff.tasks.base import Problem, Split, puzzles

NAME = "sums"
MODULUS, LENGTH = 7, 16


def problems(split: Split, seed: int) -> Iterator[Problem]:
    """As `tasks.base.puzzles`."""
    return puzzles(NAME, split, seed, _draw)


def verify(answer: str, problem: Problem) -> bool:
    return answer == problem.answer


def _draw(rng: Random) -> tuple[str, str]:
    digits = [rng.randrange(MODULUS) for _ in range(LENGTH)]
    sums = (total % MODULUS for total in itertools.accumulate(digits))
    return f"s{''.join(map(str, digits))}>", "".join(map(str, sums))
