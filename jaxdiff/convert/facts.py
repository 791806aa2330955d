"""What `jaxdiff inspect` shows of a folder that was understood, as plain data for JSON."""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax

from jaxdiff.convert.engine import Spec, misfits_of
from jaxdiff.convert.prompts import Tokenizer
from jaxdiff.models import family_name, in_dtype
from jaxdiff.models.config import Config
from jaxdiff.models.positions import without_rope
from jaxdiff.parallel.mesh import abstract_mesh
from jaxdiff.parallel.rules import MODEL, shardings
from jaxdiff.protocols import Model
from jaxdiff.types import InputError, Params

if TYPE_CHECKING:
    from jaxdiff.convert.description import Description


def facts_of(described: Description, *, mesh: str = "1x1") -> dict[str, Any]:
    """The facts of a folder that was understood; its `faults` are tensors that do not fit its config."""
    model, faults = described.model, []
    keys = keys_of(type(model.config), described.given)
    try:
        dtypes = described.dtypes
    except InputError as error:
        dtypes, faults = {}, [str(error)]
    if described.weights is None:
        held = {leaf: Spec(described.plan.leaves[leaf], kind.name, "") for leaf, kind in dtypes.items()}
        files, tensors = [str(described.path / "params")], None
    else:
        held, files, tensors = described.weights.held, described.weights.files, _tensors(described)
    return {
        "path": str(described.path),
        "layout": "published" if described.published else "ours",
        **model_facts(model, described.shapes, mesh),
        **stored(held),
        "files": files,
        "keys": keys | {"ignored": sorted(keys["ignored"] + keys["unknown"]), "unknown": []},  # as was asked
        "tensors": tensors,
        "adapter": None if described.adapter is None else described.adapter.facts(),
        "tokenizer": None if described.tokenizer is None else _of_tokenizer(described.tokenizer),
        "warnings": list(described.warnings),
        "faults": faults,
    }


def model_facts(model: Model, shapes: Params, mesh: str) -> dict[str, Any]:
    """What follows from a model's config alone. Raises InputError for a mesh that the model does not spread over."""
    c = model.config
    return {
        "family": family_name(model),
        "parameters": sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)),
        "dtype": c.dtype,
        "vocab_size": c.vocab_size,
        "embedding_rows": c.embedding_rows,
        "context": c.max_sequence_length,
        "layers": c.n_layers,
        "width": c.d_model,
        "heads": {"query": c.n_heads, "key_value": c.n_kv_heads, "size": c.head_dim},
        "positions": {"theta": c.rope_theta, "rotated": c.rotary_dim, "dtype": c.rope_dtype},
        "attention_block": model.attention_block,
        "shifted": model.shifted,
        "tied_head": c.tied,
        "ids": {
            "mask": c.mask_token_id if c.has_mask else None,
            "ends": list(c.eos_ids),
            "turn_ends": list(c.turn_ends),
        },
        "config": dataclasses.asdict(c),
        "memory": memory_of(model, shapes, mesh),
    }


def memory_of(model: Model, shapes: Params, mesh: str) -> dict[str, Any]:
    """Bytes of the params on each device of a mesh, in the dtype that the model computes in, and of the keys and values
    of one row whose canvas is as long as the context, there too.

    Raises InputError for a mesh that the model does not spread over.
    """
    c, there = model.config, abstract_mesh(mesh)
    whole = in_dtype(shapes, c.dtype)
    if there.size == 1:  # no mesh at all: no vocabulary is padded
        params = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(whole))
    else:
        laid = jax.tree.leaves(shardings(c, whole, there))
        params = sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in laid)
    kv = jax.tree.leaves(jax.eval_shape(lambda: model.empty_kv(1, c.max_sequence_length)))
    shards = 1 if c.n_kv_heads % there.shape[MODEL] else there.shape[MODEL]  # of fewer heads each device has them all
    row = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in kv) // shards
    return {"mesh": mesh, "dtype": c.dtype, "params_per_device": params, "kv_per_row": row}


def keys_of(kind: type[Config], given: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a config.json by what they are to a family; `missing` and `default` are named as it publishes them.

    Raises InputError for rotary positions that contradict each other.
    """
    kinds: dict[str, list[str]] = {"used": [], "required": [], "harmless": [], "unknown": []}
    for key in given:
        kinds[kind.kind_of(key) or "unknown"].append(key)
    kinds["ignored"] = kinds.pop("harmless")
    flat = {kind.renamed.get(key, key): value for key, value in without_rope(given).items()}
    names = {field: name for name, field in kind.renamed.items()}
    absent = {names.get(f.name, f.name): f.default for f in dataclasses.fields(kind) if flat.get(f.name) is None}
    missing = [name for name, default in absent.items() if default is dataclasses.MISSING]
    default = {name: value for name, value in absent.items() if name not in (*missing, "dtype")}  # that is the tensors'
    return {name: sorted(keys) for name, keys in kinds.items()} | {"missing": missing, "default": default}


def _tensors(described: Description) -> dict[str, Any]:
    """The tensors of a published folder: how many are used, and the names of others; what was done to names."""
    weights, plan = described.weights, described.plan
    assert weights is not None
    specs = weights.tensors.specs
    ignored = [*weights.passed_over, *(key for key in plan.copies if key in specs)]
    unfit = [m.key for m in misfits_of(plan, weights.tensors) if m.key in plan.tensors and m.key in specs]
    return {
        "used": len(plan.tensors.keys() & specs.keys()) - len(unfit),
        "ignored": sorted(ignored),
        "missing": sorted(plan.tensors.keys() - specs.keys()),
        "unexpected": sorted(specs.keys() - plan.tensors.keys() - plan.copies.keys()),
        "unfit": sorted(unfit),
        "prefix": weights.prefix,
    }


def stored(held: Mapping[str, Spec]) -> dict[str, Any]:
    """How many numbers files hold of each dtype, and their bytes."""
    counts: collections.Counter[str] = collections.Counter()
    for spec in held.values():
        counts[spec.dtype] += math.prod(spec.shape)
    sizes = {dtype: int((re.search(r"\d+", dtype) or ["8"])[0]) for dtype in counts}  # bits; a bool has 8
    return {
        "bytes": sum(count * sizes[dtype] // 8 for dtype, count in counts.items()),
        "stored": dict(counts.most_common()),
    }


def _of_tokenizer(tokenizer: Tokenizer) -> dict[str, Any]:
    names = {str(i): tokenizer.backend.id_to_token(i) for i in tokenizer.eos_ids}
    return {
        "tokens": tokenizer.backend.get_vocab_size(with_added_tokens=True),
        "ends": names,
        "template": None if tokenizer.fast.chat_template is None else tokenizer.template,
        "prompt": None if tokenizer.fault else tokenizer.fast.decode(tokenizer.prompt("hi")),
        "fault": tokenizer.fault,
    }
