"""`jaxdiff convert` and `jaxdiff export`: between a published folder and one of ours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from jaxdiff.checkpoint import adapter_folder, is_model, model_folder
from jaxdiff.cli import options
from jaxdiff.cli.show import copying
from jaxdiff.convert import convert as run_convert
from jaxdiff.convert import export as run_export
from jaxdiff.convert.folder import SHARD_BYTES, check_new
from jaxdiff.types import InputError

Target = Annotated[Path, typer.Argument(metavar="DST", help="The folder to make; it must not exist.")]


def convert(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SRC",
            help="A published folder: config.json and safetensors, or PyTorch's .bin, or org/name of the hub.",
        ),
    ],
    target: Target,
    ignore_config: options.IgnoreConfig = None,
    adapter: options.Adapter = None,
    check: Annotated[
        bool, typer.Option("--check", help="Read every tensor first, and refuse those that hold NaN or infinity.")
    ] = False,
) -> None:
    """Make a model folder from a published one; bit for bit, no code of it is run. With an adapter: the merged one."""
    check_new(target)
    folder, there = _source(source, adapter, ignore_config or ())
    with copying("converting") as report:
        run_convert(
            folder,
            target,
            report,
            ignore=ignore_config or (),
            check=check,
            adapter=there,
        )
    print(target)


def export(
    source: Annotated[str, typer.Argument(metavar="SRC", help=options.MODEL)],
    target: Target,
    max_shard_gb: Annotated[
        float, typer.Option("--max-shard-gb", min=1e-6, help="The most that one file holds; so does memory.")
    ] = SHARD_BYTES / 1e9,
    ignore_config: options.IgnoreConfig = None,
    adapter: Annotated[
        str | None,
        typer.Option(
            "--merge",
            "--adapter",
            metavar="NAME|DIR",
            help="A LoRA adapter, as of generate, that is merged into the weights.",
        ),
    ] = None,
) -> None:
    """Make a published folder (safetensors) from a model folder, bit for bit. With an adapter: the merged model."""
    if not math.isfinite(max_shard_gb):
        raise InputError(f"max-shard-gb: found {max_shard_gb}, expected a number; leave it out for files of 4 GB")
    check_new(target)
    folder, there = _source(source, adapter, ignore_config or ())
    with copying("exporting") as report:
        run_export(
            folder,
            target,
            shard_bytes=int(max_shard_gb * 1e9),
            report=report,
            ignore=ignore_config or (),
            adapter=there,
        )
    print(target)


def _source(model: str, adapter: str | None, ignore: Sequence[str]) -> tuple[Path, Path | None]:
    """The folder of the model, and that of the adapter to merge."""
    name = options.pinned(model)
    there = adapter_folder(options.pinned_adapter(adapter, name), model=name)  # before the weights, which are large
    if there is not None and is_model(there):
        return there, None
    return model_folder(name, ignore=ignore), there
