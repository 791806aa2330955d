"""Keys and values of all columns: made, read, written at a span or at indices, and moved.

    {group of layers: (keys [N B K M E], values [N B K M E])}

Heads stand before columns, so that attention reads a layer without a transposition. A pass carries the cache through
its layers, and each layer writes its own part: in this order (write, then read) XLA writes in place.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdiff.parallel.mesh import platform
from jaxdiff.pytree import pytree, static
from jaxdiff.types import Inputs, KVCache

COLUMNS = 3  # the axis of columns in a leaf
Pair = tuple[Float[Array, "N b K M E"], Float[Array, "N b K M E"]]  # keys and values of a group of layers
# What one layer sees of its keys or its values (the columns of the pass, or all of them), and the whole group's.
LayerKV = tuple[Float[Array, "B K _ E"], Float[Array, "N b K M E"]]


def empty(layers: int, rows: int, kv_heads: int, columns: int, head_dim: int, dtype: str) -> Pair:
    """Keys and values of a group of layers, zeros."""
    shape = (layers, rows, kv_heads, columns, head_dim)
    return jnp.zeros(shape, jnp.dtype(dtype)), jnp.zeros(shape, jnp.dtype(dtype))


def repad(kv: KVCache, by: int) -> KVCache:
    """The cache with `by` more columns on the left, or, negative, with fewer."""
    return jax.tree.map(lambda leaf: shift_columns(leaf, by, 0, COLUMNS), kv)


def rows_of(kv: KVCache) -> int:
    """How many rows there are, copies counted."""
    return jax.tree.leaves(kv)[0].shape[1]


def emptied(kv: KVCache, rows: Bool[Array, " B"]) -> KVCache:
    """The cache with zeros in the marked rows, in each copy that a model keeps of a row."""

    def empty_rows(leaf: Float[Array, "N b K M E"]) -> Float[Array, "N b K M E"]:
        marked = jnp.tile(rows, leaf.shape[1] // rows.shape[0])
        return jnp.where(marked[None, :, None, None, None], jnp.zeros_like(leaf), leaf)

    return jax.tree.map(empty_rows, kv)


def picked(kv: KVCache, at: Int[Array, " B"]) -> KVCache:
    """The cache with row i that of row at[i], in each copy that a model keeps of a row."""

    def rows(leaf: Float[Array, "N b K M E"]) -> Float[Array, "N b K M E"]:
        copies = jnp.arange(leaf.shape[1] // at.shape[0], dtype=jnp.int32)[:, None] * at.shape[0]
        return leaf[:, (copies + at[None]).reshape(-1)]

    return jax.tree.map(rows, kv)


def gathered(kv: KVCache, start: Int[Array, " B"], window: int, path: Int[Array, "B d"]) -> KVCache:
    """The cache with columns start + path[i] of each row moved to start + i; `path` lies within `window` columns.

    One row after the other: of a gather or a scatter over all a TPU copies the cache.
    """

    def one(row: int | Int[Array, ""], leaf: Float[Array, "N b K M E"]) -> Float[Array, "N b K M E"]:
        place = (0, row, 0, start[row], 0)
        part = jax.lax.dynamic_slice(leaf, place, (leaf.shape[0], 1, leaf.shape[2], window, leaf.shape[4]))
        return jax.lax.dynamic_update_slice(leaf, part[:, :, :, path[row]], place)

    return jax.tree.map(lambda leaf: jax.lax.fori_loop(0, path.shape[0], lambda row, kept: one(row, kept), leaf), kv)


def shift_columns(rows: Array, by: int, fill: Any, axis: int = 1) -> Array:
    """`rows` with `by` more entries of `fill` in front of an axis, or, negative, with so many fewer."""
    if by < 0:
        return jax.lax.slice_in_dim(rows, -by, rows.shape[axis], axis=axis)
    return jnp.pad(rows, [(by if i == axis else 0, 0) for i in range(rows.ndim)], constant_values=fill)


@pytree
class LayerAccess:
    """One layer's access to the cache of its group in one pass.

    Attributes:
        pair: keys and values of the whole group; `layer`: which of them this is.
        fresh, at, rows: as in `Inputs` and `Model.apply`.
        columns: how many of the cache's columns this pass sees, from 0 on.
        beside: how many of the tokens, the last ones, stand beside the canvas; not among `fresh`.
        store: as in `Inputs`.
    """

    pair: Pair
    layer: Int[Array, ""]
    fresh: Bool[Array, "B T"] | None
    at: Int[Array, " B"] | Int[Array, "B T"] | None
    rows: Int[Array, " B"] | None
    columns: int = static()
    beside: int = static(default=0)
    store: bool = static(default=True)

    @classmethod
    def of(cls, pair: Pair, layer: Int[Array, ""], inputs: Inputs, at: Any) -> LayerAccess:
        beside, fresh = 0 if inputs.beside is None else inputs.beside.shape[2], inputs.fresh
        fresh = fresh if fresh is None or not beside else fresh[:, :-beside]
        columns = inputs.valid.shape[1]
        return cls(pair, layer, fresh, at, inputs.rows, columns=columns, beside=beside, store=inputs.store)

    def update(
        self, keys: Float[Array, "B T K E"], values: Float[Array, "B T K E"]
    ) -> tuple[Float[Array, "B K S E"], Float[Array, "B K S E"], Pair]:
        """All keys and values that the layer sees: those of this pass where fresh, else the cache's, and behind them
        those beside the canvas; and the group's, with the fresh ones written where the pass stores.
        """
        (keys, all_keys), (values, all_values) = (
            self._seen(jnp.moveaxis(new, 1, 2), old) for new, old in zip((keys, values), self.pair, strict=True)
        )
        return keys, values, (all_keys, all_values)

    def _seen(self, new: Float[Array, "B K T E"], kept: Float[Array, "N b K M E"]) -> LayerKV:
        """Of keys or values."""
        if not self.beside:
            return self._update(new, kept)
        own, kept = self._update(new[:, :, : -self.beside], kept)
        return jnp.concatenate([own, new[:, :, -self.beside :]], axis=2), kept

    def _update(self, new: Float[Array, "B K T E"], kept: Float[Array, "N b K M E"]) -> LayerKV:
        """Of the columns. Where the pass stores they are written and then read: so XLA writes in place."""
        rows = jnp.arange(new.shape[0], dtype=jnp.int32)
        if self.at is not None and self.at.ndim == 2:
            own, at = self._read(kept), self.at
            if self.fresh is not None:
                old = jax.vmap(lambda row, at: row[:, at])(own, at)
                new = jnp.where(self.fresh[:, None, :, None], new, old)
            own = jax.vmap(lambda row, at, new: row.at[:, at].set(new))(own, at, new)
            kept = kept.at[self.layer, rows if self.rows is None else self.rows].set(own) if self.store else kept
        elif self.store:
            kept = self._written(new, kept, self.layer, rows if self.rows is None else self.rows)
            own = new if self.at is None and self.fresh is None else self._read(kept)
            # Else XLA reads the leaf where the layer is used, and copies all of it since it was written in between.
            own = jax.lax.optimization_barrier(own) if platform() == "tpu" else own
        else:
            own = self._written(new, self._read(kept)[None], jnp.int32(0), rows)[0]
        return own[:, :, : self.columns], kept

    def _read(self, kept: Float[Array, "N b K M E"]) -> Float[Array, "B K M E"]:
        """All columns of the rows in this layer."""
        own = jax.lax.dynamic_index_in_dim(kept, self.layer, keepdims=False)
        return own if self.rows is None else own[self.rows]

    def _written(
        self,
        new: Float[Array, "B K T E"],
        kept: Float[Array, "n c K M E"],
        layer: Int[Array, ""],
        rows: Int[Array, " B"],
    ) -> Float[Array, "n c K M E"]:
        """With the windows in these rows of a layer, one after the other: of a gather or a scatter a TPU copies all."""
        columns = jnp.zeros_like(rows) if self.at is None else self.at

        def one(index: int | Int[Array, ""], kept: Float[Array, "n c K M E"]) -> Float[Array, "n c K M E"]:
            part = jax.lax.dynamic_index_in_dim(new, index)[None]
            place = (layer, rows[index], 0, columns[index], 0)
            if self.fresh is not None:
                fresh = jax.lax.dynamic_index_in_dim(self.fresh, index)[None, :, None, :, None]
                part = jnp.where(fresh, part, jax.lax.dynamic_slice(kept, place, part.shape))
            return jax.lax.dynamic_update_slice(kept, part, place)

        return jax.lax.fori_loop(0, new.shape[0], one, kept)
