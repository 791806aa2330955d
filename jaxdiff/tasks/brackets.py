"""Balanced brackets of three kinds, 16 of them, at most three deep, some given: `b([....})...>` -> the whole string.

With a bound on the depth the strings are a regular language. Each that agrees with what is given is right.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from jaxdiff.tasks.base import Problem, Split, puzzles

NAME = "brackets"
PAIRS, DEEPEST, LENGTH = {"(": ")", "[": "]", "{": "}"}, 3, 16
GIVEN = (0, 8)  # positions that are shown, at least and at most


def problems(split: Split, seed: int) -> Iterator[Problem]:
    """As `tasks.base.puzzles`."""
    return puzzles(NAME, split, seed, _draw)


def verify(answer: str, problem: Problem) -> bool:
    """Any string of the language that agrees with the positions that are given."""
    given = problem.question[1:-1]
    fits = len(answer) == LENGTH and all(shown in (".", one) for shown, one in zip(given, answer, strict=True))
    return fits and is_balanced(answer)


def is_balanced(text: str) -> bool:
    """Whether each bracket closes the last open one, none stays open, and no more than DEEPEST are open at once."""
    waiting: list[str] = []
    for one in text:
        if one in PAIRS:
            waiting.append(PAIRS[one])
        elif not waiting or waiting.pop() != one:
            return False
        if len(waiting) > DEEPEST:
            return False
    return not waiting


def _draw(rng: Random) -> tuple[str, str]:
    text, waiting = "", list[str]()
    while len(text) < LENGTH:
        if len(waiting) < min(DEEPEST, LENGTH - len(text)) and (not waiting or rng.random() < 0.5):
            text += rng.choice(tuple(PAIRS))
            waiting.append(PAIRS[text[-1]])
        else:
            text += waiting.pop()
    shown = set(rng.sample(range(LENGTH), rng.randint(*GIVEN)))
    return f"b{''.join(one if i in shown else '.' for i, one in enumerate(text))}>", text
