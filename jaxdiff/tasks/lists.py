"""Short lists of `recall`, for training: `rqx31ab07/ab>` -> `07`. They teach in minutes to look a value up.

A list of 48 pairs has one answer in 199 tokens; of 1 to 12 pairs several fit into a row, and each is answered.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from jaxdiff.tasks import recall
from jaxdiff.tasks.base import Problem, Split, check_training

NAME = "lists"
LENGTH = recall.LENGTH
PAIRS = (1, 12)


def problems(split: Split, seed: int) -> Iterator[Problem]:
    """An endless stream of short lists, none of which is one of `recall`'s.

    Raises InputError for a held-out split: `recall` holds out its own.
    """
    check_training(NAME, split)
    rng = Random(f"{NAME}/{seed}")
    while True:
        question, answer = recall.draw(rng, rng.randint(*PAIRS))
        yield Problem(question, answer, answer, continues=True)


verify = recall.verify
