"""Arithmetic drills: `26 + 48 = ` -> `74`. They teach in minutes the sums that worked answers teach slowly.

Nothing but the result is to be predicted, and the expression stands right before it, written the ways that worked
answers write it; all numbers are under 100.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from jaxdiff.tasks.base import Problem, Split

NAME = "drills"


def problems(split: Split, seed: int) -> Iterator[Problem]:
    """An endless stream of sums, products, differences and quotients (drills have no held-out part)."""
    del split
    rng = Random(f"{NAME}/{seed}")
    while True:
        yield _drill(rng)


def verify(answer: str, problem: Problem) -> bool:
    return answer.strip() == problem.answer


def _drill(rng: Random) -> Problem:
    kind = rng.choice("+++---***/")
    if kind == "+":
        total = rng.randint(2, 99)
        parts = [total - (first := rng.randint(1, total - 1)), first]
        if parts[0] > 2 and rng.random() < 0.4:
            cut = rng.randint(1, parts[0] - 1)
            parts = [parts[0] - cut, cut, parts[1]]
        rng.shuffle(parts)
    elif kind == "-":
        total = rng.randint(2, 99)
        parts = [total, rng.randint(1, total - 1)]
        for _ in range(rng.choice((0, 0, 1, 2))):
            left = parts[0] - sum(parts[1:])
            if left > 1:
                parts.append(rng.randint(1, left - 1))
        total = parts[0] - sum(parts[1:])
    else:
        small = rng.randint(1, 12)
        large = rng.randint(1, 99 // small)
        parts, total = ([small, large] if rng.random() < 0.5 else [large, small]), small * large
        if kind == "/":
            parts, total = [total, small], large
    sign = rng.choice(("*", "x")) if kind == "*" else kind
    glue = rng.choice((f" {sign} ", f" {sign} ", sign))
    equals = " = " if " " in glue else "="
    return Problem(question=glue.join(map(str, parts)) + equals, worked=str(total), answer=str(total), continues=True)
