"""Single steps of worked answers: `His cousin has 11 - 7 = ` -> `4`. Drills in the words and units of the problems.

A worked answer of `gsm_symbolic` holds a step in each line with an equals sign. Nothing but the result is to be
predicted; what the line says before it holds all that is needed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from jaxdiff.tasks import gsm_symbolic
from jaxdiff.tasks.base import Problem, Split, check_training

NAME = "steps"
LENGTH = 256
_STEP = re.compile(r"^(?P<left>[^=]*= ?[^\w\s]?)(?P<result>\d+)", re.MULTILINE)


def problems(split: Split, seed: int) -> Iterator[Problem]:
    """The steps of `gsm_symbolic`'s training problems, in their order.

    Raises InputError for a held-out split (few steps are different), and when `reasoning-gym` is not installed.
    """
    check_training(NAME, split)
    for whole in gsm_symbolic.problems(split, seed):
        for step in _STEP.finditer(whole.worked):
            result = step["result"]
            yield Problem(question=step["left"], worked=result, answer=result, template=whole.template, continues=True)


def verify(answer: str, problem: Problem) -> bool:
    return answer.strip() == problem.answer
