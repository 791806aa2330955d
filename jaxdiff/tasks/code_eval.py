"""pass@k of programs that lm-eval's tasks had written, run in the sandbox in place of the hub's metric `code_eval`.

That metric is a script which is fetched and runs programs beside this one, with no limit but time. `instead` gives
whoever loads it this one: tasks modelled on humaneval and mbpp then need no other change.
"""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from unittest import mock

from jaxdiff.tasks import sandbox
from jaxdiff.types import InputError

NAME = "code_eval"
ASK = "tasks: {} runs what the model wrote; --run-code runs it, in processes without network and with limits"


class CodeEval:
    """What `evaluate.load("code_eval")` gives, as far as tasks use it."""

    def compute(
        self, references: Sequence[str], predictions: Sequence[Sequence[str]], k: Sequence[int] = (1, 10, 100)
    ) -> tuple[dict[str, float], list[list[dict[str, Any]]]]:
        """Programs `predictions`, some for each of `references`, the tests that come behind them.

        Returns pass@k for each k that there are programs enough for, and of each program what became of it.
        """
        found = [
            sandbox.run_all(f"{program}\n{tests}" for program in those)
            for tests, those in zip(references, predictions, strict=True)
        ]
        counts = [(len(outcomes), sum(outcome.passed for outcome in outcomes)) for outcomes in found]
        rates = {
            f"pass@{most}": math.fsum(pass_at(most, *count) for count in counts) / len(counts)
            for most in k
            if all(tried >= most for tried, _ in counts)
        }
        return rates, [[vars(outcome) for outcome in outcomes] for outcomes in found]


CODE_EVAL = CodeEval()


def pass_at(k: int, tried: int, passed: int) -> float:
    """How likely one of k of them is to have passed (arXiv 2107.03374, equation 1)."""
    return 1 - math.comb(tried - passed, k) / math.comb(tried, k)


def pass_at_k(references: Sequence[str], predictions: Sequence[Sequence[str]], k: Sequence[int]) -> dict[str, float]:
    """The metric of a task file."""
    return CODE_EVAL.compute(references, predictions, k)[0]


def check_config(config: Mapping[str, Any] | None, run_code: bool) -> None:
    """Raises InputError for a task file that says its score runs what a model wrote, unless `run_code`."""
    if config and config.get("unsafe_code") and not run_code:
        raise InputError(ASK.format(config["task"]))


def check_task(task: Any, run_code: bool) -> None:
    """Raises InputError for a task of lm-eval that runs what a model wrote: unasked, by other means, or where programs
    cannot be confined.
    """
    if not getattr(task, "UNSAFE_CODE", False):
        return
    if not run_code:
        raise InputError(ASK.format(task.task_name))
    own = task.config.process_results
    judges = [own] if own else [each["metric"] for each in task.config.metric_list or ()]
    if not (judges and all(_asks(judge) for judge in judges)):
        raise InputError(
            f"tasks: {task.task_name} runs what the model wrote in a way of its own, which --run-code cannot confine; "
            "leave it out"
        )
    sandbox.check()


def _asks(judge: Any) -> bool:
    """Whether this metric of a task has what `instead` gave, or is the one above."""
    return any(value is CODE_EVAL for value in getattr(inspect.unwrap(judge), "__globals__", {}).values())


@contextlib.contextmanager
def instead(run_code: bool) -> Iterator[None]:
    """While it lasts, `evaluate.load("code_eval")` gives `CODE_EVAL`. Raises InputError there without `run_code`."""
    import evaluate

    load = evaluate.load

    def ours(path: str, *args: Any, **further: Any) -> Any:
        if path != NAME:
            return load(path, *args, **further)
        if not run_code:
            raise InputError(ASK.format("one of them"))
        return CODE_EVAL

    with mock.patch.object(evaluate, "load", ours):
        yield
