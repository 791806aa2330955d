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

from jaxdiff.pytree import pytree, static
from jaxdiff.types import Inputs, KVCache
from jaxdiff.windows import put, take

COLUMNS = 3  # the axis of columns in a leaf
# Each row's window [K T E] of a leaf [N B K M E], addressed by layer, row and first column; nothing is transposed.
READS = jax.lax.GatherDimensionNumbers(offset_dims=(1, 2, 3), collapsed_slice_dims=(0, 1), start_index_map=(0, 1, 3))
WRITES = jax.lax.ScatterDimensionNumbers(
    update_window_dims=(1, 2, 3), inserted_window_dims=(0, 1), scatter_dims_to_operand_dims=(0, 1, 3)
)
IN_BOUNDS: dict[str, Any] = {"indices_are_sorted": True, "unique_indices": True, "mode": "promise_in_bounds"}

Pair = tuple[Float[Array, "N B K M E"], Float[Array, "N B K M E"]]  # keys and values of a group of layers
# What one layer sees of its keys or its values (the columns of the pass, or all of them), and the whole group's.
LayerKV = tuple[Float[Array, "B K _ E"], Float[Array, "N B K M E"]]


def empty(layers: int, rows: int, kv_heads: int, columns: int, head_dim: int, dtype: str) -> Pair:
    """Keys and values of a group of layers, zeros."""
    shape = (layers, rows, kv_heads, columns, head_dim)
    return jnp.zeros(shape, jnp.dtype(dtype)), jnp.zeros(shape, jnp.dtype(dtype))


def repad(kv: KVCache, by: int) -> KVCache:
    """The cache with `by` more columns on the left, or, negative, with fewer."""
    return jax.tree.map(lambda leaf: shift_columns(leaf, by, 0, COLUMNS), kv)


def emptied(kv: KVCache, rows: Bool[Array, " B"]) -> KVCache:
    """The cache with zeros in the marked rows, in each copy that a model keeps of a row."""

    def empty_rows(leaf: Float[Array, "N b K M E"]) -> Float[Array, "N b K M E"]:
        marked = jnp.tile(rows, leaf.shape[1] // rows.shape[0])
        return jnp.where(marked[None, :, None, None, None], jnp.zeros_like(leaf), leaf)

    return jax.tree.map(empty_rows, kv)


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
        fresh, at: as in `Inputs` and `Model.apply`.
        columns: how many of the cache's columns this pass sees, from 0 on.
        store: as in `Inputs`.
    """

    pair: Pair
    layer: Int[Array, ""]
    fresh: Bool[Array, "B T"]
    at: Int[Array, " B"] | Int[Array, "B T"] | None
    columns: int = static()
    store: bool = static(default=True)

    @classmethod
    def of(cls, pair: Pair, layer: Int[Array, ""], inputs: Inputs, at: Any) -> LayerAccess:
        return cls(pair, layer, inputs.fresh, at, columns=inputs.valid.shape[1], store=inputs.store)

    def update(
        self, keys: Float[Array, "B T K E"], values: Float[Array, "B T K E"]
    ) -> tuple[Float[Array, "B K L E"], Float[Array, "B K L E"], Pair]:
        """All keys and values that the layer sees: those of this pass where fresh, else the cache's; and the group's,
        with the fresh ones written where the pass stores.
        """
        (keys, all_keys), (values, all_values) = (
            self._update(jnp.moveaxis(new, 1, 2), old) for new, old in zip((keys, values), self.pair, strict=True)
        )
        return keys, values, (all_keys, all_values)

    def _update(self, new: Float[Array, "B K T E"], kept: Float[Array, "N B K M E"]) -> LayerKV:
        if self.at is None:
            old = self._own(kept)[:, :, : self.columns]
            own, kept = self._put_back(jnp.where(self.fresh[:, None, :, None], new, old), kept)
        elif self.at.ndim == 2:
            own, kept = self._indices(new, kept)
        elif not self.store:
            own, kept = self._by_layer(new, kept, self.at)
        else:
            # A TPU's scatter wants another layout of the cache, and copies all of it.
            own, kept = jax.lax.platform_dependent(new, kept, self.at, tpu=self._by_layer, default=self._by_window)
        return own[:, :, : self.columns], kept

    def _by_window(
        self, new: Float[Array, "B K T E"], kept: Float[Array, "N B K M E"], start: Int[Array, " B"]
    ) -> LayerKV:
        """Each row's window is written into the cache, and the layer read."""
        rows = jnp.arange(new.shape[0], dtype=jnp.int32)
        at = jnp.stack([jnp.full_like(rows, self.layer), rows, start], axis=1)
        old = jax.lax.gather(kept, at, READS, (1, 1, *new.shape[1:]), **IN_BOUNDS)
        new = jnp.where(self.fresh[:, None, :, None], new, old)
        kept = jax.lax.scatter(kept, at, new, WRITES, **IN_BOUNDS)
        return self._own(kept), kept

    def _by_layer(
        self, new: Float[Array, "B K T E"], kept: Float[Array, "N B K M E"], start: Int[Array, " B"]
    ) -> LayerKV:
        """The layer is read, its windows written, and it goes back as a whole where the pass stores."""
        own = self._own(kept)
        old = take(own, start, new.shape[2], axis=2)
        return self._put_back(put(own, jnp.where(self.fresh[:, None, :, None], new, old), start, axis=2), kept)

    def _indices(self, new: Float[Array, "B K T E"], kept: Float[Array, "N B K M E"]) -> LayerKV:
        """As `_by_layer`, at any columns."""
        own, at = self._own(kept), self.at
        old = jax.vmap(lambda row, at: row[:, at])(own, at)
        new = jnp.where(self.fresh[:, None, :, None], new, old)
        return self._put_back(jax.vmap(lambda row, at, new: row.at[:, at].set(new))(own, at, new), kept)

    def _put_back(self, own: Float[Array, "B K m E"], kept: Float[Array, "N B K M E"]) -> LayerKV:
        """The layer's first m columns are written where the pass stores."""
        if not self.store:
            return own, kept
        kept = jax.lax.dynamic_update_slice(kept, own[None], (self.layer, 0, 0, 0, 0))
        return self._own(kept), kept

    def _own(self, kept: Float[Array, "N B K M E"]) -> Float[Array, "B K M E"]:
        return jax.lax.dynamic_index_in_dim(kept, self.layer, keepdims=False)
