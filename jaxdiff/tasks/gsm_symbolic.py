"""GSM8K-like word problems with worked answers, from `reasoning-gym`'s `gsm_symbolic` (Apache-2.0).

The task is restricted to templates and numbers that a few-million-parameter model can learn: 10 templates, every
number a whole one of at most 60. A problem is held out by its content, so that any seed is safe: the hash of the
question's normalised text decides its split, and no seed can carry a test problem into training.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from random import Random
from typing import Any

from jaxdiff.tasks import base
from jaxdiff.tasks.base import TRIES, Problem, Split
from jaxdiff.types import InputError

NAME = "gsm_symbolic"
LENGTH = 256
TEMPLATES = (6, 10, 16, 31, 34, 39, 43, 48, 55, 62)
LARGEST = 60
_NUMBER = re.compile(r"\d+(?:\.\d+)?")


def problems(split: Split, seed: int) -> Iterator[Problem]:
    """A stream of distinct problems of one split, in the order that `seed` fixes.

    Templates take turns, so that every prefix of the stream covers them evenly until one has no new problem left;
    the stream ends when none has.

    Raises InputError when `reasoning-gym` is not installed.
    """
    generators = _generators()
    rng = Random(f"{NAME}/{seed}")
    seen: set[bytes] = set()
    left = list(TEMPLATES)
    while left:
        for template in tuple(left):
            for _ in range(TRIES):
                problem = _problem(generators[template](rng, 1.0), template)
                if problem is None or split_of(problem.question) != split:
                    continue
                digest = hashlib.blake2b(problem.question.encode(), digest_size=8).digest()
                if digest not in seen:
                    seen.add(digest)
                    yield problem
                    break
            else:
                left.remove(template)


def split_of(question: str) -> Split:
    """As `tasks.base.split_of`; case, punctuation and spacing do not matter."""
    return base.split_of(" ".join(re.findall(r"[a-z0-9]+", question.lower())))


def verify(answer: str, problem: Problem) -> bool:
    """True if the number after the last `####` is the problem's."""
    found = re.findall(r"####\s*(-?\d+)(?![\d.,]*\d)", answer)
    return bool(found) and found[-1] == problem.answer


def _problem(raw: dict[str, Any], template: int) -> Problem | None:
    """None where a number is out of range: decimals, or over LARGEST."""
    question, worked = raw["question"], raw["metadata"]["answer_cot"]
    final = re.search(r"#### (\d+)$", worked)
    numbers = _NUMBER.findall(f"{question} {worked}")
    if final is None or any("." in n or int(n) > LARGEST for n in numbers):
        return None
    return Problem(question=question, worked=worked, answer=final[1], template=template)


def _generators() -> dict[int, Any]:
    try:
        from reasoning_gym.arithmetic.gsm_symbolic.gsm_symbolic import GSMSymbolicDataset, GSMSymbolicDatasetConfig
    except ImportError:
        raise InputError(
            "task gsm_symbolic: reasoning-gym is not installed; run: pip install 'jaxdiff[test]'"
        ) from None
    return GSMSymbolicDataset(GSMSymbolicDatasetConfig(seed=0, size=1)).generators
