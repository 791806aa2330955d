"""Data sets and their verifiers: modules with NAME, LENGTH, `problems(split, seed)` and `verify(answer, problem)`.

LENGTH: tokens that an answer is given unless more are asked for; a puzzle's are one block.
"""

from types import ModuleType

from jaxdiff.tasks import (
    brackets,
    copy,
    drills,
    gsm_symbolic,
    latin,
    lists,
    permutation,
    recall,
    sort,
    star,
    steps,
    sums,
)
from jaxdiff.tasks.base import Problem as Problem
from jaxdiff.types import InputError

PUZZLES = (permutation, latin, sums, star, brackets, recall, sort, copy)
TASKS: dict[str, ModuleType] = {module.NAME: module for module in (gsm_symbolic, drills, steps, lists, *PUZZLES)}


def task(name: str) -> ModuleType:
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
