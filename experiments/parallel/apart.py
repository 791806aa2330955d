"""Three of the task's ten templates kept apart: a model that learned from answers to the other seven alone.

    python -m experiments.parallel.apart runs/apart                      # as runs/control, but for the three
    python -m experiments.parallel.run test apart runs/apart/model --like control --task gsm_symbolic_three --n 200

`gsm-1m` itself was trained on all ten: what is unseen is new to the training for parallel decoding.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import typer

from jaxdiff.cli.show import progress
from jaxdiff.tasks import TASKS, gsm_symbolic
from jaxdiff.tasks.base import Problem, Split
from jaxdiff.train.distill import Distillation, distill

RECIPE = Path(__file__).parent / "certainty.json"
APART = gsm_symbolic.TEMPLATES[:3]
SEEN, UNSEEN = f"{gsm_symbolic.NAME}_seven", f"{gsm_symbolic.NAME}_three"


def part(name: str, templates: tuple[int, ...]) -> Any:
    """The task with the problems of some of its templates alone."""

    def problems(split: Split, seed: int) -> Iterator[Problem]:
        return (problem for problem in gsm_symbolic.problems(split, seed) if problem.template in templates)

    module = ModuleType(name)
    vars(module).update(NAME=name, LENGTH=gsm_symbolic.LENGTH, problems=problems, verify=gsm_symbolic.verify)
    return module


TASKS[SEEN] = part(SEEN, tuple(template for template in gsm_symbolic.TEMPLATES if template not in APART))
TASKS[UNSEEN] = part(UNSEEN, APART)


def main(out: Annotated[Path, typer.Argument(help="The run's folder.")]) -> None:
    """As the recipe's control: as many steps, on as many of its problems as are of the other templates."""
    raw = json.loads(RECIPE.read_text())
    seen = 1 - len(APART) / len(gsm_symbolic.TEMPLATES)
    raw |= {"task": SEEN, "problems": round(seen * raw["problems"]), "objective": "certainty:beta=0"}
    raw["buckets"] = [bucket | {"task": SEEN} for bucket in raw["buckets"]]
    with progress("answers", raw["problems"]) as update:
        distill(Distillation.of(raw), out, progress=update, note=print)


if __name__ == "__main__":
    typer.run(main)
