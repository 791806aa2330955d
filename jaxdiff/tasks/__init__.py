"""Data sets and their verifiers: modules with NAME, LENGTH, `problems(split, seed)` and `verify(answer, problem)`.

LENGTH: tokens that an answer is given unless more are asked for; a puzzle's are one block.
"""

from types import ModuleType

from jaxdiff.tasks import brackets, copy, drills, gsm_symbolic, latin, permutation, recall, sort, star, steps, sums
from jaxdiff.tasks.base import Problem as Problem
from jaxdiff.types import InputError

PUZZLES = (permutation, latin, sums, star, brackets, recall, sort, copy)
TASKS: dict[str, ModuleType] = {module.NAME: module for module in (gsm_symbolic, drills, steps, *PUZZLES)}


def task(name: str) -> ModuleType:
    """The task called `name`. Raises InputError with the known names."""
    if name not in TASKS:
        raise InputError(f"task: found {name!r}, expected one of {', '.join(TASKS)}")
    return TASKS[name]


def lengths(name: str, gen_length: int | None, block_length: int | None) -> tuple[int, int | None]:
    """Tokens to generate, and those of a block (None: the model's own): what is asked for, else the task's own."""
    module = task(name)
    if gen_length is not None:
        return gen_length, block_length
    own = module.LENGTH if module in PUZZLES and block_length is None else block_length
    return module.LENGTH, own
