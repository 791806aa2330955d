"""Arithmetic drills: `26 + 48 = ` -> `74`. They teach in minutes the sums that worked answers teach slowly.

Nothing but the result is to be predicted, and the expression stands right before it, written the ways that worked
answers write it; two operands, and no number over 60, as in the word problems.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from jaxdiff.tasks.base import Problem, Split, check_training

NAME = "drills"
LENGTH = 256
LARGEST = 60


def problems(split: Split, seed: int) -> Iterator[Problem]:
    """An endless stream of sums, products, differences and quotients.

    Raises InputError for a held-out split: there are too few different drills to hold any out.
    """
    check_training(NAME, split)
    rng = Random(f"{NAME}/{seed}")
    while True:
        question, answer = expression(rng)
        yield Problem(question=question, worked=answer, answer=answer, continues=True)


def verify(answer: str, problem: Problem) -> bool:
    return answer.strip() == problem.answer


def expression(rng: Random) -> tuple[str, str]:
    """One expression through its equals sign, and its value: `26 + 48 = ` and `74`."""
    kind = rng.choice("+++---**/")
    if kind == "+":
        total = rng.randint(2, LARGEST)
        first = rng.randint(1, total - 1)
        parts = [first, total - first]
    elif kind == "-":
        first = rng.randint(2, LARGEST)
        parts = [first, rng.randint(1, first - 1)]
        total = first - parts[1]
    else:
        small = rng.randint(2, 12)
        large = rng.randint(1, LARGEST // small)
        parts, total = ([small, large] if rng.random() < 0.5 else [large, small]), small * large
        if kind == "/":
            parts, total = [total, small], large
    sign = rng.choice(("*", "x")) if kind == "*" else kind
    glue = rng.choice((f" {sign} ", sign))
    equals = " = " if " " in glue else "="
    return glue.join(map(str, parts)) + equals, str(total)
