"""One of 48 values: `rqx31ab07.../ab>` -> `07`. Two-letter keys and two-digit values, 192 tokens; one is asked."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from random import Random
from string import ascii_lowercase

from jaxdiff.tasks.base import Problem, Split, puzzles

NAME = "recall"
PAIRS, LENGTH = 48, 2
_KEYS = list(map("".join, itertools.product(ascii_lowercase, repeat=2)))


def problems(split: Split, seed: int) -> Iterator[Problem]:
    """As `tasks.base.puzzles`."""
    return puzzles(NAME, split, seed, lambda rng: draw(rng, PAIRS))


def verify(answer: str, problem: Problem) -> bool:
    return answer == problem.answer


def draw(rng: Random, pairs_shown: int) -> tuple[str, str]:
    """A question and its answer."""
    pairs = {key: f"{rng.randrange(100):02}" for key in rng.sample(_KEYS, pairs_shown)}
    asked = rng.choice(list(pairs))
    return f"r{''.join(key + value for key, value in pairs.items())}/{asked}>", pairs[asked]
