"""Each row's own slice of an axis: read, and written over."""

from __future__ import annotations

import jax
from jaxtyping import Array, Int


def take(rows: Array, start: Int[Array, " B"], size: int, axis: int = 1) -> Array:
    """`size` entries of `axis` from each row's start, [B ... size ...]; a start that is too late is moved back."""
    return jax.vmap(lambda row, at: jax.lax.dynamic_slice_in_dim(row, at, size, axis - 1))(rows, start)


def put(rows: Array, part: Array, start: Int[Array, " B"], axis: int = 1) -> Array:
    """`rows` with each one's part written over from its start on."""
    return jax.vmap(lambda row, new, at: jax.lax.dynamic_update_slice_in_dim(row, new, at, axis - 1))(rows, part, start)
