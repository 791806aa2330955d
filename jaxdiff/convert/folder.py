"""Whole folders: a published one into one of ours, and back. Either is there as a whole, or not at all."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from jaxdiff.convert import published, stream
from jaxdiff.convert.engine import check, fill, plan_of, tensor
from jaxdiff.convert.text import FILES, copy_tokenizer, open_tokenizer
from jaxdiff.files import copy_present, read_object, refusing, replaced, write_object
from jaxdiff.models import ARCHITECTURES, family_name, model_of
from jaxdiff.types import InputError, Model

ORIGINAL = "published"  # where one of our folders keeps the configs it was converted from
CONFIGS = (published.CONFIG, published.GENERATION)
WRITERS = (ValueError, SafetensorError)  # what orbax and safetensors raise on a full disk and the like
SHARD_BYTES = 4_000_000_000
Report = Callable[[int, int], None]  # bytes done, bytes in all


def _silent(done: int, total: int) -> None: ...


def convert(source: Path, target: Path, report: Report = _silent, *, ignore: Iterable[str] = ()) -> None:
    """Make one of our folders from a published one, a leaf at a time: memory holds the largest stacked leaf.

    Args:
        source: config.json and safetensors (or pickled) weights, in one file or shards; a tokenizer if there is one.
        target: must not exist.
        report: told of the bytes written.
        ignore: unknown keys of its config.json that are left alone (`jaxdiff.load`); ours is written without them.

    Raises InputError, before anything is written, for a folder that is damaged, of an unknown family, whose config is
    not known in full, or whose tensors do not fit it.
    """
    _check_new(target)
    config = read_object(source / published.CONFIG)
    if not published.is_published(source, config):
        raise InputError(f"{source}: is converted already; name a published folder")
    config, tensors = published.with_ids(config, source), published.Files(source)
    model, shapes = model_of(config | {"dtype": tensors.dtype}, source / published.CONFIG, ignore=ignore)
    plan = plan_of(model, shapes, most=len(tensors.specs))
    dtypes = check(plan, tensors)
    done = 0

    def made(leaf: str) -> np.ndarray:
        nonlocal done
        array = fill(plan, tensors, leaf, dtypes[leaf])
        done += array.nbytes
        report(done, total)
        return array

    pending = {leaf: stream.Pending(shape, dtypes[leaf], partial(made, leaf)) for leaf, shape in plan.leaves.items()}
    total = sum(leaf.nbytes for leaf in pending.values())
    family = family_name(model)
    fast = open_tokenizer(source, family)
    with replaced(target) as new, refusing(f"{target}: cannot be written", kinds=WRITERS):
        write_object(new / published.CONFIG, dataclasses.asdict(model.config) | {"family": family})
        if fast is not None:
            copy_tokenizer(fast, source, new)
        (new / ORIGINAL).mkdir()
        copy_present(CONFIGS, source, new / ORIGINAL)
        stream.write(new / "params", pending)


def export(
    source: Path,
    target: Path,
    *,
    shard_bytes: int = SHARD_BYTES,
    report: Report = _silent,
    ignore: Iterable[str] = (),
) -> None:
    """Make a published folder from one of ours: safetensors under the family's names, dtypes kept, to the bit.

    Args:
        source: a folder that was converted (its own config.json is given back) or trained here.
        target: must not exist.
        shard_bytes: a file's most; memory holds as much, and the largest stacked leaf.
        report: told of the bytes written.
        ignore: unknown keys of its config.json that are left alone (`jaxdiff.load`).

    Raises InputError, before anything is written, for a folder that is damaged or does not fit its config.
    """
    _check_new(target)
    config = read_object(source / published.CONFIG)
    if published.is_published(source, config):
        raise InputError(f"{source}: is published already; name a folder with params/")
    model, shapes = model_of(config, source / published.CONFIG, ignore=ignore)
    dtypes = stream.stored(source / "params", shapes)
    plan = plan_of(model, shapes)
    sizes = {
        key: math.prod(shape) * dtypes[plan.by_tensor[key][0].leaf].itemsize for key, shape in plan.tensors.items()
    }
    shards = _shards(sizes, shard_bytes)
    total, done, held = sum(sizes.values()), 0, {}
    with replaced(target) as new, refusing(f"{target}: cannot be written", kinds=WRITERS):
        write_object(new / published.CONFIG, _described(model))
        copy_present(FILES, source, new)
        copy_present(CONFIGS, source / ORIGINAL, new)
        for name, keys in shards.items():
            tensors = {}
            for key in keys:
                wanted = {part.leaf for part in plan.by_tensor[key]}
                if wanted != held.keys():
                    held = {}  # let go before the next is read
                    held = stream.read(source / "params", wanted)
                tensors[key] = tensor(plan, key, held)
                done += tensors[key].nbytes
            save_file(tensors, new / name, metadata={"format": "pt"})
            report(done, total)
        if len(shards) > 1:
            where = {key: name for name, keys in shards.items() for key in keys}
            index = {"metadata": {"total_size": total}, "weight_map": where}
            write_object(new / f"{published.SAFETENSORS}.index.json", index)


def _check_new(target: Path) -> None:
    if target.exists() or target.is_symlink():
        raise InputError(f"{target}: exists; name a new folder, or remove it")


def _described(model: Model) -> dict[str, Any]:
    """A config.json in the family's own names, for a model that was trained here and has none from elsewhere."""
    family = family_name(model)
    architecture = next(name for name, known in ARCHITECTURES.items() if known == family)
    published_names = {ours: theirs for theirs, ours in model.config.renamed.items()}
    values = {published_names.get(name, name): value for name, value in dataclasses.asdict(model.config).items()}
    return {"architectures": [architecture]} | values


def _shards(sizes: dict[str, int], most: int) -> dict[str, list[str]]:
    """Which file holds which tensors: in the table's order, a new file where one would grow beyond `most` bytes."""
    files, size = [[]], 0
    for key, one in sizes.items():
        if files[-1] and size + one > most:
            files, size = [*files, []], 0
        files[-1].append(key)
        size += one
    if len(files) == 1:
        return {published.SAFETENSORS: files[0]}
    return {f"model-{i:05}-of-{len(files):05}.safetensors": keys for i, keys in enumerate(files, 1)}
