"""The arrays that a call is given, checked before compilation: their shapes, ids, origins, keys, reference."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key

from jaxdiff.decode.state import row_keys
from jaxdiff.protocols import Model
from jaxdiff.types import InputError


def shape_of(name: str, array: Any) -> tuple[int, int]:
    """(rows, length) of an array of ids; else InputError."""
    if getattr(array, "ndim", None) != 2 or array.shape[0] < 1:
        raise InputError(f"{name}: found shape {getattr(array, 'shape', type(array))}, expected [rows, length]")
    return array.shape


def check_ids(
    model: Model, ids: Any, origin: Any, *, masks_allowed: bool, alone: bool = False, what: str = "prompt"
) -> None:
    """Ids lie in the vocabulary, and [MASK] only where it is allowed; else InputError.

    On concrete arrays; under a trace the caller vouches for them. `alone`: they are one request's, and no row is named.
    `what` they are, for the message about [MASK].
    """
    if isinstance(ids, jax.core.Tracer) or isinstance(origin, jax.core.Tracer):
        return
    ids, config = np.asarray(ids), model.config
    real = np.arange(ids.shape[1])[None] >= np.asarray(origin)[:, None]
    outside = np.argwhere(real & ((ids < 0) | (ids >= config.vocab_size)))
    if outside.size:
        row, column = outside[0]
        where = f"token {column}" if alone else f"row {row}"
        raise InputError(f"{where}: found id {ids[row, column]}, expected 0 to {config.vocab_size - 1}")
    masks = np.argwhere(real & (ids == config.mask_token_id))
    if masks.size and not masks_allowed:
        row, column = masks[0]
        where = "" if alone else f"row {row} "
        raise InputError(
            f"{what}: {where}holds [MASK] (id {config.mask_token_id}) in column {column}, expected none; take it out, "
            "or fill holes with infill"
        )


def checked_origin(origin: Any, rows: int, width: int) -> Int[Array, " B"]:
    """The column of each row's first token, 0 where it is not given; no row may be empty, else InputError."""
    if origin is None:
        return jnp.zeros((rows,), jnp.int32)
    if getattr(origin, "shape", None) != (rows,):
        raise InputError(f"origin: found shape {getattr(origin, 'shape', None)}, expected ({rows},), one for each row")
    if not isinstance(origin, jax.core.Tracer) and np.any((np.asarray(origin) < 0) | (np.asarray(origin) >= width)):
        raise InputError(f"origin: found {np.asarray(origin).tolist()}, expected 0 to {width - 1}: no row may be empty")
    return jnp.asarray(origin, jnp.int32)


def checked_keys(key: Any, rows: int) -> Key[Array, " B"]:
    """A key for each row: those given, or the one given (default key 0) folded with the row's number."""
    key = jax.random.key(0) if key is None else key
    check_typed(key)
    if key.ndim == 0:
        return row_keys(key, np.arange(rows, dtype=np.int32))
    if key.shape != (rows,):
        raise InputError(f"key: found shape {key.shape}, expected () or ({rows},), one for each row")
    return key


def check_typed(key: Any) -> None:
    """Raises InputError for what is no key, nor an array of them."""
    if not jnp.issubdtype(getattr(key, "dtype", None) or np.asarray(key).dtype, jax.dtypes.prng_key):
        raise InputError("key: found no typed key; make one with jax.random.key(seed)")


def checked_reference(model: Model, reference: Any, rows: int, length: int, overhang: int) -> Int[Array, "B L"]:
    """The finished canvases [rows, length] that a policy decodes towards, with [MASK] in the overhang.

    Raises InputError for another shape, and for a canvas with masks left.
    """
    if getattr(reference, "shape", None) != (rows, length):
        found = getattr(reference, "shape", None)
        raise InputError(f"reference: found shape {found}, expected the canvas' {(rows, length)}")
    mask = model.config.mask_token_id
    if not isinstance(reference, jax.core.Tracer) and np.any(np.asarray(reference) == mask):
        row = int(np.argwhere(np.asarray(reference) == mask)[0][0])
        raise InputError(f"reference: row {row} holds [MASK] (id {mask}), expected a canvas that is filled")
    return jnp.pad(jnp.asarray(reference, jnp.int32), ((0, 0), (0, overhang)), constant_values=mask)
