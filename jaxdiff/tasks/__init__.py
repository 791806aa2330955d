"""Data sets and their verifiers: modules with NAME, `problems(split, seed)` and `verify(answer, problem)`."""

from types import ModuleType

from jaxdiff.tasks import drills, gsm_symbolic, steps
from jaxdiff.tasks.base import Problem as Problem
from jaxdiff.types import InputError

TASKS: dict[str, ModuleType] = {module.NAME: module for module in (gsm_symbolic, drills, steps)}


def task(name: str) -> ModuleType:
    """The task called `name`. Raises InputError with the known names."""
    if name not in TASKS:
        raise InputError(f"task: found {name!r}, expected one of {', '.join(TASKS)}")
    return TASKS[name]
