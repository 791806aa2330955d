"""Weights in int8: which they are, how they are made, how they are read. qwix does the arithmetic.

    leaf [.. in out] bfloat16 --quantised--> QArray(qvalue [.. in out] int8, scale [.. 1 out]) --full--> [.. in out]

A quantised leaf stays a leaf by name, shape and dtype (its scale's), and is a pytree of two arrays: it is scanned,
sliced and laid over a mesh as any other. Activations stay as they are.
"""

from __future__ import annotations

import functools
import importlib.util
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiff.leaves import kind_of, leaf_name
from jaxdiff.types import InputError, Params

WEIGHTS = ("int8",)


def check_weights(weights: str | None) -> None:
    """Raises InputError for weights that are not known, and where qwix is not installed."""
    if weights is None:
        return
    if weights not in WEIGHTS:
        raise InputError(
            f"weights: found {weights!r}, expected {' or '.join(WEIGHTS)}; leave it out for the plain ones"
        )
    if importlib.util.find_spec("qwix") is None:
        raise InputError(f"weights: {weights} needs qwix, which is not installed; pip install 'jaxdiff[int8]'")


def quantised(params: Params) -> Params:
    """A model's params (or some of its leaves, by path) with every matrix in int8, symmetric, rounded to nearest.

    A scale for each output channel of each layer and expert, and for each token of the embedding, in the leaf's dtype.
    Norms, biases and routers stay, and so do leaves that are quantised already.

    Raises InputError where qwix is not installed, and for a leaf without a kind.
    """
    check_weights("int8")

    def convert(path: Any, leaf: Any) -> Any:
        summed = kind_of(leaf_name(path)).summed
        return leaf if summed is None or _is_quantised(leaf) else _int8(leaf, summed)

    return jax.tree_util.tree_map_with_path(convert, params, is_leaf=_is_quantised)


def full(weight: Any, dtype: Any) -> Array:
    """A weight, or a slice of one, as an array in this dtype.

    A quantised one is multiplied out where it is used, so that XLA can fuse that into the product which reads it.
    """
    if not _is_quantised(weight):
        return weight.astype(dtype)
    import qwix

    return qwix.dequantize(weight.astype(dtype))


def plain(params: Params) -> Params:
    """Params as arrays alone: quantised leaves are multiplied out."""
    return jax.tree.map(lambda x: full(x, x.dtype) if _is_quantised(x) else x, params, is_leaf=_is_quantised)


@functools.partial(jax.jit, static_argnums=1)
def _int8(leaf: Float[Array, "*n i o"], summed: int) -> Any:
    import qwix

    axes = [axis for axis in range(leaf.ndim) if axis != leaf.ndim + summed]
    return qwix.quantize(leaf.astype(jnp.float32), jnp.int8, channelwise_axes=axes, scale_dtype=leaf.dtype)


def _is_quantised(leaf: Any) -> bool:
    return hasattr(leaf, "qvalue")
