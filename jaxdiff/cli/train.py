"""`jaxdiff train`: run a recipe into a folder."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from jaxdiff.checkpoint import SHIPPED, shipped_folder
from jaxdiff.cli.show import note
from jaxdiff.types import InputError


def train(
    out: Annotated[Path, typer.Option("--out", help="The run's folder; the same command goes on with what it holds.")],
    recipe: Annotated[
        Path | None, typer.Option("--recipe", metavar="JSON", help=f"Default: the one beside {SHIPPED}.")
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="In place of the recipe's.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, max=2**32 - 1, help="In place of the recipe's.")] = None,
) -> None:
    """Train a model from a recipe; killed, it goes on from its last checkpoint."""
    from jaxdiff.train import Recipe  # optax and the tokenizer's trainer are not needed to decode
    from jaxdiff.train import train as run

    if out.exists() and not out.is_dir():
        raise InputError(f"out: {out} is a file; name a folder")
    chosen = Recipe.read(recipe or shipped_folder() / SHIPPED / "recipe.json")
    changes: dict[str, Any] = {name: value for name, value in (("steps", steps), ("seed", seed)) if value is not None}
    folder = run(dataclasses.replace(chosen, **changes), out)
    if folder is None:  # what a pre-empted machine asks for: not a failure
        note(f"stopped early; the same command goes on from {out / 'checkpoints'}")
    else:
        print(folder)
