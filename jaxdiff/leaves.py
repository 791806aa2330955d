"""The kinds of leaves of a model's params: one table that says all that is known of a leaf by its name.

Sharding, int8 weights, dtypes, the optimizer and the count of FLOPs ask it. Where a logical axis lies on a mesh is a
second table, `parallel.rules.RULES`.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.types import InputError

QUANTISED = ("qvalue", "scale")  # what qwix calls the two arrays of a quantised leaf: both are of the leaf's kind
BASE, TRAINED, FACTOR = "base", ("a", "b"), "factor"  # what an adapted leaf consists of (`models.lora.Adapted`)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kind:
    """What holds for every leaf of one name.

    Attributes:
        axes: logical names (keys of `RULES`) of the leaf's last axes; those in front of them are stacked layers.
        summed: of a leaf that int8 weights quantise, the axis that its product sums over, counted from the end: one
            scale stands for all entries along it. None: the leaf is not quantised.
        optimizer: what trains the leaf; "muon" takes the last two axes as a matrix [in, out].
        dtype: the leaf's dtype whatever the model's is; None: the model's.
        expert: the leaf belongs to experts of which each token meets only some.
    """

    axes: tuple[str, ...]
    summed: int | None = None
    optimizer: Literal["adam", "muon"] = "adam"
    dtype: str | None = None
    expert: bool = False


# By the last one or two names of a leaf's path. Published code routes in float32 and keeps the expert bias so: rounded
# ones would choose other experts.
LEAVES: Mapping[str, Kind] = {
    "wte": Kind(axes=("vocab", "embed"), summed=-1),
    "head": Kind(axes=("embed", "vocab"), summed=-2),
    "q_proj/kernel": Kind(axes=("embed", "heads"), summed=-2, optimizer="muon"),
    "q_proj/bias": Kind(axes=("heads",)),
    "k_proj/kernel": Kind(axes=("embed", "kv_heads"), summed=-2, optimizer="muon"),
    "k_proj/bias": Kind(axes=("kv_heads",)),
    "v_proj/kernel": Kind(axes=("embed", "kv_heads"), summed=-2, optimizer="muon"),
    "v_proj/bias": Kind(axes=("kv_heads",)),
    "attn_out/kernel": Kind(axes=("heads", "embed"), summed=-2, optimizer="muon"),
    "attn_out/bias": Kind(axes=("embed",)),
    "ff_proj/kernel": Kind(axes=("embed", "ffn"), summed=-2, optimizer="muon"),
    "up_proj/kernel": Kind(axes=("embed", "ffn"), summed=-2, optimizer="muon"),
    "ff_out/kernel": Kind(axes=("ffn", "embed"), summed=-2, optimizer="muon"),
    "experts/ff_proj": Kind(axes=("experts", "embed", "ffn"), summed=-2, expert=True),
    "experts/up_proj": Kind(axes=("experts", "embed", "ffn"), summed=-2, expert=True),
    "experts/ff_out": Kind(axes=("experts", "ffn", "embed"), summed=-2, expert=True),
    "router/kernel": Kind(axes=("embed", "experts"), optimizer="muon", dtype="float32"),
    "router/bias": Kind(axes=("experts",), dtype="float32"),
    "fuse/kernel": Kind(axes=("embed", "embed"), summed=-2, optimizer="muon"),  # of drafters
    "first/kernel": Kind(axes=("embed", "embed"), summed=-2, optimizer="muon"),
    "second/kernel": Kind(axes=("embed", "embed"), summed=-2, optimizer="muon"),
    "k_encoded/kernel": Kind(axes=("embed", "kv_heads"), summed=-2, optimizer="muon"),  # of models that encode
    "k_encoded/bias": Kind(axes=("kv_heads",)),
    "v_encoded/kernel": Kind(axes=("embed", "kv_heads"), summed=-2, optimizer="muon"),
    "v_encoded/bias": Kind(axes=("kv_heads",)),
    "weight": Kind(axes=("embed",)),  # of every norm
}


def leaf_name(path: Any) -> str:
    """A leaf's path, as `jax.tree_util` gives it, as text: `layers/q_proj/kernel`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def kind_of(leaf: str) -> Kind:
    """The kind of the leaf with this name (see `leaf_name`), of one of the two arrays of a quantised leaf, or of a part
    of an adapted one: its base is of the leaf's own kind, what is trained beside it in float32 is not.

    Raises InputError for a leaf that the table does not know.
    """
    parts = leaf.split("/")
    if parts[-1] in QUANTISED:
        parts.pop()
    if parts[-1] == BASE:
        parts.pop()
    if parts[-1] in (*TRAINED, FACTOR):
        return _beside(kind_of("/".join(parts[:-1])), parts[-1])
    for count in (2, 1):
        if kind := LEAVES.get("/".join(parts[-count:])):
            return kind
    raise InputError(f"params: found no kind for the leaf {leaf}; add it to LEAVES in jaxdiff/leaves.py")


def _beside(kind: Kind, part: str) -> Kind:
    """Of a matrix of this kind, what its adapter's `part` is: a [.. in r], b [.. r out], or the factor of a layer."""
    *stacked, into, out = kind.axes
    axes = {"a": (*stacked, into, "rank"), "b": (*stacked, "rank", out), FACTOR: ()}[part]
    return Kind(axes=axes, dtype="float32", expert=kind.expert)


def leaf_dtype(leaf: str, dtype: str) -> str:
    """The dtype of the leaf with this name in params of `dtype`: a router's are float32. Raises as `kind_of`."""
    return kind_of(leaf).dtype or dtype


def weights_met(params: Any, config: Any) -> float:
    """How many weights of its layers a token meets in one forward, embedding and head left out: of experts those that
    it is sent to. Raises as `kind_of`.
    """
    met = 0.0
    for path, leaf in jax.tree.leaves_with_path({k: v for k, v in params.items() if k not in ("wte", "head")}):
        name = leaf_name(path)
        if not name.endswith(f"/{QUANTISED[1]}"):
            share = config.num_experts_per_tok / config.num_experts if kind_of(name).expert else 1.0
            met += share * leaf.size
    return met


def fingerprint(params: Any) -> str | None:
    """What tells the weights of one model from another's: 16 hex digits of its last norm, which no int8 and no adapter
    changes. None where there is no number: shapes alone, or a trace.

    Raises InputError for params that keep no such norm.
    """
    try:
        norm = params["ln_f"]["weight"]
    except (KeyError, TypeError, IndexError):
        raise InputError(
            "params: found no leaf ln_f/weight, expected the last norm, by which the weights are told apart; name it so"
        ) from None
    if isinstance(norm, jax.core.Tracer | jax.ShapeDtypeStruct):
        return None
    return hashlib.sha256(np.asarray(norm, jnp.bfloat16).tobytes()).hexdigest()[:16]
