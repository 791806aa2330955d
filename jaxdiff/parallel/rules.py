"""Which axis of which array lies over which axis of the mesh: two tables.

    leaf name --leaves.LEAVES--> logical axes --RULES--> mesh axes

Rows go over `data`. Heads, the MLP's width and the vocabulary go over `model`: a layer then takes two all-reduces, one
for the attention's output and one for the MLP's, and the embedding one. The idea of RULES is that of
jax-llm-examples' ShardingRules.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from jaxdiff.leaves import kind_of, leaf_name
from jaxdiff.types import InputError, Params

DATA, MODEL = "data", "model"
LANE = 128  # vocabulary entries that share one draw of noise: shards are whole lanes, so that all meshes draw alike

RULES: Mapping[str, str | None] = {
    "batch": DATA,  # of canvas, keys, K/V, scores, the policy's and the stopper's state
    "vocab": MODEL,  # padded to whole lanes on each shard
    "heads": MODEL,
    "kv_heads": MODEL,  # whole on each shard where there are fewer of them than shards
    "ffn": MODEL,  # of experts too: each shard holds a slice of every expert, and no token travels
    "embed": None,
    "experts": None,
    "rank": None,  # of adapters
}


def check_model(config: Any, mesh: Mesh | AbstractMesh) -> None:
    """Raises InputError where the heads of a model do not spread over the mesh's model axis."""
    shards = mesh.shape[MODEL]
    if config.n_heads % shards:
        raise InputError(_uneven("attention heads", config.n_heads, shards))
    if config.n_kv_heads % shards and shards % config.n_kv_heads:
        raise InputError(_uneven("key/value heads", config.n_kv_heads, shards))


def shardings(config: Any, shapes: Params, mesh: Mesh | AbstractMesh) -> Params:
    """Of each leaf of a model's params (arrays or shapes): a `ShapeDtypeStruct` with its shape there and its sharding.

    The vocabulary is padded to whole lanes on each shard; all other shapes stay.

    Raises InputError for heads or MLP widths that do not spread over the model axis, and for a leaf without a kind.
    """
    check_model(config, mesh)
    shards = mesh.shape[MODEL]

    def lay(path: Any, leaf: Any) -> jax.ShapeDtypeStruct:
        name = leaf_name(path)
        axes = kind_of(name).axes
        lead = len(leaf.shape) - len(axes)
        shape, over = list(leaf.shape), list(map(_over, axes, leaf.shape[lead:]))
        for i, axis in enumerate(axes):
            size = shape[lead + i]
            if axis == "vocab":
                shape[lead + i] = padded(size, shards)
            elif axis == "kv_heads" and config.n_kv_heads % shards:
                over[i] = None
            elif over[i] == MODEL and size % shards:
                raise InputError(_uneven(f"entries of {name}", size, shards))
        sharding = NamedSharding(mesh, PartitionSpec(*[None] * lead, *over))
        return jax.ShapeDtypeStruct(tuple(shape), leaf.dtype, sharding=sharding)

    return jax.tree_util.tree_map_with_path(lay, shapes)


def place(config: Any, params: Params, mesh: Mesh) -> Params:
    """A model's params laid over the mesh; those that lie there already are not touched. Raises as `shardings`."""

    def lay(leaf: jax.Array, target: jax.ShapeDtypeStruct) -> jax.Array:
        missing = [(0, wanted - found) for found, wanted in zip(leaf.shape, target.shape, strict=True)]
        whole = jnp.pad(leaf, missing) if any(after for _, after in missing) else leaf
        return jax.device_put(whole, target.sharding)

    return jax.tree.map(lay, params, shardings(config, params, mesh))


def padded(vocabulary: int, shards: int) -> int:
    """The vocabulary in whole lanes on each of the shards."""
    return -(-vocabulary // (LANE * shards)) * LANE * shards


def specs(name: str, leaf: Any) -> Any:
    """Of the leaf of that name: of its array, or of each where it is quantised or adapted. Raises InputError as
    `kind_of`.
    """

    def spec(path: Any, part: Any) -> PartitionSpec:
        return PartitionSpec(*map(_over, kind_of(f"{name}/{leaf_name(path)}" if path else name).axes, part.shape))

    return jax.tree_util.tree_map_with_path(spec, leaf)


def _over(axis: str, size: int) -> str | None:
    """An axis of one entry, such as the one that a scale stands for, is whole."""
    return None if size == 1 else RULES[axis]


def _uneven(what: str, size: int, shards: int) -> str:
    return (
        f"mesh: found {size} {what} for a model axis of {shards}, expected a multiple of it; "
        f"try a model axis of {math.gcd(size, shards)}"
    )
