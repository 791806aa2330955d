"""`jaxdiff train` and `jaxdiff distill`: run a recipe into a folder."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from jaxdiff.checkpoint import SHIPPED, shipped_folder
from jaxdiff.cli.show import note, progress
from jaxdiff.types import InputError

Out = Annotated[Path, typer.Option("--out", help="The run's folder; the same command goes on with what it holds.")]
Steps = Annotated[int | None, typer.Option("--steps", min=1, help="In place of the recipe's.")]
Seed = Annotated[int | None, typer.Option("--seed", min=0, max=2**32 - 1, help="In place of the recipe's.")]
Objective = Annotated[
    str | None,
    typer.Option(
        "--objective",
        metavar="NAME[:K=V,...]",
        help="What is lost, in place of the recipe's: denoise, certainty:beta=2, trajectory, near_far; of an "
        "autoregressive model next_token.",
    ),
]
Noise = Annotated[
    str | None,
    typer.Option(
        "--noise",
        metavar="NAME[:K=V,...]",
        help="What is masked, in place of the recipe's: uniform, semi_ar:share=0.5, complement, mixture + replace ..., "
        "meap:masked=0.15 of an autoregressive model.",
    ),
]


def train(
    out: Out,
    recipe: Annotated[
        Path | None, typer.Option("--recipe", metavar="JSON", help=f"Default: the one beside {SHIPPED}.")
    ] = None,
    objective: Objective = None,
    noise: Noise = None,
    steps: Steps = None,
    seed: Seed = None,
) -> None:
    """Train a model from a recipe; killed, it goes on from its last checkpoint."""
    from jaxdiff.train import Recipe  # optax and the tokenizer's trainer are not needed to decode
    from jaxdiff.train import train as run

    _check_folder(out)
    chosen = Recipe.read(recipe or shipped_folder() / SHIPPED / "recipe.json")
    _tell(run(changed(chosen, objective=objective, noise=noise, steps=steps, seed=seed), out), out)


def distill(
    out: Out,
    recipe: Annotated[Path, typer.Option("--recipe", metavar="JSON", help="Teacher, data, objective and steps.")],
    model: Annotated[str | None, typer.Option("--model", help="What is trained, in place of the recipe's.")] = None,
    teacher: Annotated[str | None, typer.Option("--teacher", help="Who answers, in place of the recipe's.")] = None,
    objective: Objective = None,
    noise: Noise = None,
    steps: Steps = None,
    seed: Seed = None,
) -> None:
    """Train a model on a teacher's decodes of training problems, to need fewer forwards; the teacher may be itself."""
    from jaxdiff.train import Distillation
    from jaxdiff.train import distill as run

    _check_folder(out)
    changes = {"model": model, "teacher": teacher, "objective": objective, "noise": noise, "steps": steps, "seed": seed}
    chosen = changed(Distillation.read(recipe), **changes)
    with progress("answers", chosen.problems) as update:
        folder = run(chosen, out, progress=update, note=note)
    _tell(folder, out)


def changed(recipe: Any, **changes: Any) -> Any:
    """The recipe with what the command line says in place of its own. Raises InputError for what makes no run."""
    return dataclasses.replace(recipe, **{name: value for name, value in changes.items() if value is not None})


def _check_folder(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise InputError(f"out: {out} is a file; name a folder")


def _tell(folder: Path | None, out: Path) -> None:
    if folder is None:  # what a pre-empted machine asks for: not a failure
        note(f"stopped early; the same command goes on from {out}")
    else:
        print(folder)
