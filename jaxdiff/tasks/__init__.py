"""Data sets and their verifiers, a `Task` each: most are modules.

LENGTH: tokens that an answer is given unless more are asked for; a puzzle's are one block.
"""

from jaxdiff.tasks import (
    brackets,
    copy,
    drills,
    gsm_symbolic,
    latin,
    lists,
    permutation,
    permutation_upper,
    recall,
    sort,
    star,
    stars,
    steps,
    sums,
)
from jaxdiff.tasks.base import Problem as Problem
from jaxdiff.tasks.base import Task as Task
from jaxdiff.types import InputError

STARS = (stars.EASY, stars.MEDIUM, stars.HARD)
PUZZLES: tuple[Task, ...] = (permutation, latin, sums, star, brackets, recall, sort, copy, *STARS, permutation_upper)
TASKS: dict[str, Task] = {module.NAME: module for module in (gsm_symbolic, drills, steps, lists, *PUZZLES)}


def task(name: str) -> Task:
    """The task called `name`. Raises InputError with the known names."""
    if name not in TASKS:
        raise InputError(f"task: found {name!r}, expected one of {', '.join(TASKS)}")
    return TASKS[name]


def lengths(
    name: str, gen_length: int | None, block_length: int | None, attention_block: int | None
) -> tuple[int, int | None]:
    """Tokens to generate, and those of a block (None: the default of a decode), where these were asked for.

    A puzzle of its own length is one block, unless the model attends in blocks (`attention_block`).
    """
    module = task(name)
    length = module.LENGTH if gen_length is None else gen_length
    whole = module in PUZZLES and length == module.LENGTH and block_length is attention_block is None
    return length, length if whole else block_length
