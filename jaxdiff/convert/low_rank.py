"""The matrices of an adapter between two layouts: peft's, by tensor, and ours, stacked beside a model's leaves.

    lora_A [r, I], lora_B [O, r], s of a tensor  --beside-->  Adapted(W, A [N I r], B [N r O], s [N]) of a leaf
                                                 <--pairs---

Layers of a stack may differ in rank (the less is padded with zeros) and in s (experts of one layer share theirs, and B
takes what is left). A fused tensor is cut into leaves; those of one are written as blocks of a greater rank.

Beside peft's own two files nothing is written: the digest of the matrices that were adapted stands in the header of the
tensors, where peft passes it over.
"""

from __future__ import annotations

import collections
import json
from collections.abc import Container, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_dtypes import bfloat16
from safetensors import safe_open
from safetensors.numpy import save

from jaxdiff.convert import stream
from jaxdiff.convert.engine import Tensors, plan_of
from jaxdiff.convert.lora import CONFIG, GATED, PLAIN, is_named
from jaxdiff.convert.table import Part, Plan
from jaxdiff.files import added, write_object
from jaxdiff.models import lora
from jaxdiff.parts import digest
from jaxdiff.protocols import Model
from jaxdiff.types import InputError, Params

TENSORS = "adapter_model.safetensors"
BASE = "base_digest"  # in the header of the tensors
SAMPLED = 16  # rows of a matrix that stand for it in the digest: of 8B weights 30 MB


class Pair(NamedTuple):
    """A tensor's own: lora_A [r, I], lora_B [O, r], and what their product is multiplied by."""

    a: np.ndarray
    b: np.ndarray
    scale: float


def save_adapter(
    folder: str | Path, model: Model, params: Params, *, base: str = "", tensors: Tensors | None = None
) -> None:
    """Write the adapter beside a model's params to `folder`, both of its files or none: as peft saves one. peft loads
    it for a model of the published class, unless it is gated. What else lies in the folder stays.

    A digest of the matrices that it stands beside goes with it, and `load` refuses a model with others.

    Args:
        base: what the model is called, for the config.
        tensors: the model's, as its folder has them (`jaxdiff.inspect(folder).tensors`), for the digest; default the
            params' own. Without them an adapter beside int8 weights, which no longer tell what they were made from,
            gets no digest, and is not checked.

    Raises InputError for params without an adapter.
    """
    found = lora.adapters(params)
    if not found:
        raise InputError("params: found no adapter beside them, expected one; make it with models.lora.adapt")
    plan = plan_of(model, lora.bare(params))
    pairs, gated = pairs_of(plan, found), any(leaf.gated for leaf in found.values())
    if tensors is None and not any(hasattr(leaf.base, "qvalue") for leaf in found.values()):
        dtypes = dict.fromkeys(plan.leaves, np.dtype(np.float32))  # of no account: the digest rounds
        tensors = stream.Leaves(
            "params", plan, dtypes, lambda wanted: {leaf: np.asarray(found[leaf].base) for leaf in wanted}
        )
    header = {"format": "pt"} | ({} if tensors is None else {BASE: digest_of_base(tensors, plan, pairs)})
    with added(Path(folder)) as new:
        (new / TENSORS).write_bytes(_in_order(save(tensors_of(pairs), metadata=header)))
        write_object(new / CONFIG, config_of(plan, pairs, base=base, gated=gated))


def _in_order(file: bytes) -> bytes:
    """A safetensors file with its metadata sorted, which has another order each time it is written otherwise."""
    size = int.from_bytes(file[:8], "little")
    header = json.loads(file[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    assert len(text) <= size
    return file[:8] + text.ljust(size) + file[8 + size :]


def digest_of_base(tensors: Tensors, plan: Plan, adapted: Container[str]) -> str:
    """Of a model's tensors that are `adapted`: their names, and evenly spread rows of each, from the first to the last,
    rounded to bfloat16, so that it is the same in whatever dtype they are stored or were loaded.

    Other weights differ everywhere; a change of single rows may go unseen.
    """
    pieces = []
    for key, shape in plan.tensors.items():
        if key in adapted:
            rows = np.unique(np.linspace(0, shape[0] - 1, SAMPLED, dtype=np.int64)).tolist()
            sample = np.concatenate([tensors.read(key, slice(row, row + 1)) for row in rows])
            pieces += [key.encode(), sample.astype(bfloat16).tobytes()]
    return digest(*pieces)


def written_beside(folder: Path) -> str | None:
    """The digest that an adapter's folder has of the matrices that it was trained beside; None for none."""
    if not (folder / TENSORS).is_file():
        return None
    with safe_open(folder / TENSORS, framework="np") as file:
        return (file.metadata() or {}).get(BASE)


def beside(params: Params, plan: Plan, pairs: Mapping[str, Pair], *, gated: bool) -> Params:
    """Params with these pairs, by the published name of the tensor that they belong to, beside their leaves."""
    by_leaf: dict[str, list[tuple[Part, Pair]]] = {}
    for key, pair in pairs.items():
        for part in plan.by_tensor[key]:
            by_leaf.setdefault(part.leaf, []).append((part, pair))
    flat: Any = flatten_dict(params, sep="/")
    for leaf, parts in by_leaf.items():
        *stacked, wide, out = plan.leaves[leaf]
        rank = max(pair.a.shape[0] for _, pair in parts)
        a, b = np.zeros((*stacked, wide, rank), np.float32), np.zeros((*stacked, rank, out), np.float32)
        factor = np.zeros(stacked[:1], np.float32)
        for part, pair in parts:
            factor[part.index[0]] = max(factor[part.index[0]], abs(pair.scale))
        factor = np.where(factor > 0, factor, 1)
        for part, pair in parts:
            own = pair.a.shape[0]
            a[part.index][:, :own] = pair.a.T
            b[part.index][:own] = pair.b[part.rows].T * (pair.scale / factor[part.index[0]])
        flat[leaf] = lora.beside(leaf, flat[leaf], a, b, factor, gated=gated)
    return unflatten_dict(flat, sep="/")


def pairs_of(plan: Plan, found: Mapping[str, lora.Adapted]) -> dict[str, Pair]:
    """The pairs of adapted leaves, by the published names of the tensors that they belong to."""
    host = {leaf: jax.tree.map(np.asarray, (x.a, x.b, x.factor)) for leaf, x in found.items()}
    pairs = {}
    for key, every in plan.by_tensor.items():
        if not (parts := [part for part in every if part.leaf in host]):
            continue
        factors = [float(host[part.leaf][2][part.index[0]]) for part in parts]
        lows = [host[part.leaf][0][part.index].T for part in parts]
        a = np.concatenate(lows)
        b, at = np.zeros((plan.tensors[key][0], a.shape[0]), np.float32), 0
        for part, low, factor in zip(parts, lows, factors, strict=True):
            b[part.rows, at : at + low.shape[0]] = host[part.leaf][1][part.index].T * (factor / (factors[0] or 1.0))
            at += low.shape[0]
        pairs[key] = Pair(a, b, factors[0])
    return pairs


def config_of(plan: Plan, pairs: Mapping[str, Pair], *, base: str, gated: bool) -> dict[str, Any]:
    """The adapter_config.json of pairs, as peft reads it; of a gated adapter its `peft_type` is one that peft refuses.

    `base`: what the model is called that they belong to.
    """
    ranks = {_module(key): pair.a.shape[0] for key, pair in pairs.items()}
    alphas = {_module(key): _rounded(pair.scale * pair.a.shape[0]) for key, pair in pairs.items()}
    rank, alpha = _usual(ranks.values()), _usual(alphas.values())
    return {
        "peft_type": GATED if gated else PLAIN,
        "base_model_name_or_path": base,
        "task_type": None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "init_lora_weights": True,
        "target_modules": _targets(plan, list(ranks)),
        "rank_pattern": {module: own for module, own in ranks.items() if own != rank},
        "alpha_pattern": {module: own for module, own in alphas.items() if own != alpha},
    }


def tensors_of(pairs: Mapping[str, Pair]) -> dict[str, np.ndarray]:
    """The tensors of pairs as peft names them."""
    named = {"A": lambda pair: pair.a, "B": lambda pair: pair.b}
    return {
        f"base_model.model.{_module(key)}.lora_{letter}.weight": np.ascontiguousarray(of(pair))
        for key, pair in pairs.items()
        for letter, of in named.items()
    }


def _targets(plan: Plan, modules: list[str]) -> list[str]:
    """Last names where they mean these modules alone; else the whole names."""
    short = sorted({module.rpartition(".")[2] for module in modules})
    matrices = [_module(key) for key, shape in plan.tensors.items() if len(shape) == 2]
    return short if {m for m in matrices if is_named(m, short)} == set(modules) else sorted(modules)


def _usual(values: Iterable[Any]) -> Any:
    return collections.Counter(values).most_common(1)[0][0]


def _rounded(alpha: float) -> float | int:
    """Float32 has no more digits."""
    short = float(f"{alpha:.7g}")
    return int(short) if short.is_integer() else short


def _module(key: str) -> str:
    return key.removesuffix(".weight")
