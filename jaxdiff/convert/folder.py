"""Whole folders: a published one into one of ours, and back. Either is there as a whole, or not at all."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from jaxdiff.convert import kinds, published
from jaxdiff.convert.description import describe
from jaxdiff.convert.engine import fill
from jaxdiff.convert.text import copy_tokenizer, tokenizer_files
from jaxdiff.files import copy_present, read_object, replaced, saving, write_object
from jaxdiff.models import architecture, family_name, family_of
from jaxdiff.models.config import Each
from jaxdiff.protocols import Model
from jaxdiff.types import InputError

ORIGINAL = "published"  # where one of our folders keeps the configs it was converted from
CONFIGS = (published.CONFIG, published.GENERATION)
SHARD_BYTES = 4_000_000_000
MODEL_TYPES = {  # what published classes call their configs
    "LLaDAModelLM": "llada",
    "ILLaDAForCausalLM": "illada",
    "StableDiffcoderForCausalLM": "llama",
    "DreamModel": "Dream",
    "LLaDAMoEModelLM": "llada",
    "LLaDA2MoeModelLM": "llada2_moe",
    "SDARForCausalLM": "sdar",
    "SDARMoeForCausalLM": "sdar_moe",
    "Fast_dLLM_QwenForCausalLM": "Fast_dLLM_Qwen",
    "A2DQwen2LMHeadModel": "a2d-qwen2",
    "A2DQwen3LMHeadModel": "a2d-qwen3",
    "LlamaForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
Report = Callable[[int, int], None]  # bytes done, bytes in all


def _silent(done: int, total: int) -> None: ...


def convert(
    source: Path,
    target: Path,
    report: Report = _silent,
    *,
    ignore: Iterable[str] = (),
    check: bool = False,
    adapter: Path | None = None,
) -> None:
    """Make one of our folders from a published one, a leaf at a time: memory holds the largest stacked leaf.

    Args:
        source: config.json and safetensors (or pickled) weights, in one file or shards; a tokenizer if there is one.
            With an adapter, one of ours too.
        target: must not exist.
        report: told of the bytes written.
        ignore: unknown keys of its config.json that are left alone (`jaxdiff.load`); ours is written without them.
        check: refuse tensors that hold NaN or infinity; all are read once more for it.
        adapter: the folder of a LoRA adapter that is merged into the weights; each leaf keeps its dtype.

    Raises InputError, before anything is written, for a folder that is damaged, of an unknown family, whose config is
    not known in full, whose chat template fails, or whose tensors do not fit it.
    """
    from jaxdiff.convert import writer  # orbax is slow to import, and not needed to read

    check_new(target)
    described = describe(source, ignore=ignore, adapter=adapter)
    tokenizer, plan, dtypes = described.tokenizer, described.plan, described.dtypes
    if described.adapter is not None:
        described.adapter.check_merges()
        described.check_base()
    if not described.published and adapter is None:
        raise InputError(f"{source}: is converted already; name a published folder")
    tensors = described.tensors
    if tokenizer is not None and tokenizer.fault is not None:
        raise InputError(tokenizer.fault)
    if check:
        described.check_numbers()
    done = 0

    def made(leaf: str) -> np.ndarray:
        nonlocal done
        array = fill(plan, tensors, leaf, dtypes[leaf])
        done += array.nbytes
        report(done, total)
        return array

    pending = {leaf: writer.Pending(shape, dtypes[leaf], partial(made, leaf)) for leaf, shape in plan.leaves.items()}
    total = sum(leaf.nbytes for leaf in pending.values())
    config = dataclasses.asdict(described.config) | {"family": family_name(described.model)}
    with saving(target), replaced(target) as new:
        write_object(new / published.CONFIG, config)
        if tokenizer is not None:
            copy_tokenizer(tokenizer.fast, source, new)
        (new / ORIGINAL).mkdir()
        _copy_configs(source if described.published else source / ORIGINAL, new / ORIGINAL)
        writer.write(new / "params", pending)


def export(
    source: Path,
    target: Path,
    *,
    shard_bytes: int = SHARD_BYTES,
    report: Report = _silent,
    ignore: Iterable[str] = (),
    adapter: Path | None = None,
) -> None:
    """Make a published folder from one of ours: safetensors under the family's names, dtypes kept, to the bit.

    Args:
        source: a folder that was converted (its own config.json is given back) or trained here.
        target: must not exist.
        shard_bytes: a file's most; memory holds as much, and the largest stacked leaf.
        report: told of the bytes written.
        ignore: unknown keys of its config.json that are left alone (`jaxdiff.load`).
        adapter: as of `convert`.

    Raises InputError, before anything is written, for a folder that is damaged or does not fit its config.
    """
    check_new(target)
    described = describe(source, ignore=ignore, adapter=adapter)
    if described.adapter is not None:
        described.adapter.check_merges()
        described.check_base()
    if described.published:
        raise InputError(f"{source}: is published already; name a folder with params/")
    config, dtypes, plan = published_config(described.model), described.dtypes, described.plan
    published_tensors = described.tensors
    stored = {key: dtypes[plan.by_tensor[key][0].leaf] for key in plan.tensors}
    sizes = {key: math.prod(shape) * stored[key].itemsize for key, shape in plan.tensors.items()}
    shards = _shards(sizes, shard_bytes)
    total, done = sum(sizes.values()), 0
    with saving(target), replaced(target) as new:
        write_object(new / published.CONFIG, config)
        copy_present(tokenizer_files(source), source, new)
        copy_present(CONFIGS, source / ORIGINAL, new)
        for name, keys in shards.items():
            tensors = {}
            for key in keys:
                tensors[key] = published_tensors.read(key, slice(None)).astype(stored[key], copy=False)
                done += tensors[key].nbytes
            save_file(tensors, new / name, metadata={"format": "pt"})
            report(done, total)
        if len(shards) > 1:
            where = {key: name for name, keys in shards.items() for key in keys}
            index = {"metadata": {"total_size": total}, "weight_map": where}
            write_object(new / f"{published.SAFETENSORS}.index.json", index)


def _copy_configs(source: Path, target: Path) -> None:
    """Copy what a model was published with; it no longer says that its weights are quantised."""
    copy_present(CONFIGS, source, target)
    config = read_object(target / published.CONFIG, optional=True)
    if kinds.QUANTISED in config:
        write_object(target / published.CONFIG, {k: v for k, v in config.items() if k != kinds.QUANTISED})


def check_new(target: Path) -> None:
    """Raises InputError for a folder that is to be made, and is there."""
    if target.exists() or target.is_symlink():
        raise InputError(f"{target}: exists; name a new folder, or remove it")


def published_config(model: Model) -> dict[str, Any]:
    """A config.json in the family's own names, for a model that was trained here and has none from elsewhere.

    It says all that the family requires, and the rest that its published class would otherwise set by its own defaults:
    they are not those of the published models (`LLaDAConfig` describes GPT-2).

    Raises InputError for a model whose published file would be read as one of another family.
    """
    c, name = model.config, architecture(model)
    theirs = {ours: theirs for theirs, ours in c.renamed.items()}
    values = {theirs.get(key, key): value for key, value in dataclasses.asdict(c).items()}
    further = values.pop("further_eos_token_ids")
    ends = {"eos_token_id": [c.eos_token_id, *further]} if further else {}
    left_out = [key for key in ("eot_token_id", "prefix_lm") if not values[key]]
    left_out += [] if c.has_mask else ["mask_token_id"]
    repeated = {key: getattr(c, ours) for key, ours in c.repeated.items()}
    required = {k: [v.value] * c.n_layers if isinstance(v, Each) else v for k, v in c.required.items()}
    written = {
        "architectures": [name],
        "model_type": MODEL_TYPES[name],
        **required,
        **repeated,
        **c.training,
        **{key: value for key, value in values.items() if key not in left_out},
        **ends,
        "pad_token_id": c.eos_token_id,  # of the published models; a class's own may lie outside the vocabulary
        "torch_dtype": c.dtype,
        "use_cache": False,
    }
    if (other := family_of(written)) != (family := family_name(model)):
        raise InputError(
            f"export: found an autoregressive model ({family}) with [MASK] in its vocabulary (id {c.mask_token_id}), "
            f"whose published file means {other}, expected one without; train family llama to publish it"
        )
    return written


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
