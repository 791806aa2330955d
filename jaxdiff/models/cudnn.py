"""Attention on an NVIDIA GPU: cuDNN's fused kernel, which never writes the logits to main memory.

Behind `jax.nn.dot_product_attention`, whose rules for it `fits` follows. It has not been run on a GPU yet: so a small
call of the kind is tried there first, and where it fails the plain products serve.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxdiff.parallel.mesh import weights_are_spread

HALF = (jnp.bfloat16, jnp.float16)
WIDEST, MULTIPLE = 128, 8  # of a head, on every GPU that has the kernel (compute capability 8.0)


def fits(q: Float[Array, "B T H E"], k: Float[Array, "B K S E"]) -> bool:
    """Whether `attend` takes these shapes: half precision, heads of a width that the kernel has, even lengths (its
    gradient asks for them), and weights that do not lie over several devices.
    """
    size, lengths = q.shape[-1], (q.shape[1], k.shape[2])
    narrow = size <= WIDEST and size % MULTIPLE == 0 and all(length % 2 == 0 for length in lengths)
    return narrow and q.dtype in HALF and q.dtype == k.dtype and not weights_are_spread() and runs(size, q.dtype)


def attend(
    q: Float[Array, "B T H E"],
    k: Float[Array, "B K S E"],
    v: Float[Array, "B K S E"],
    mask: Bool[Array, "B t S"],
    *,
    implementation: Any = "cudnn",
) -> Float[Array, "B T H E"]:
    """Attention over the keys that the mask lets through; float32 softmax.

    `implementation`: another of JAX's, with the same arguments, to test what it is given.
    """
    rows, length, columns = q.shape[0], q.shape[1], k.shape[2]
    k, v = (jnp.moveaxis(x, 1, 2) for x in (k, v))
    mask = jnp.broadcast_to(mask[:, None], (rows, 1, length, columns))  # cuDNN takes no mask of one query for all
    return jax.nn.dot_product_attention(q, k, v, mask=mask, implementation=implementation)


@functools.cache
def runs(size: int, dtype: Any) -> bool:
    """Whether the kernel compiles and gives numbers on the GPU at hand, for heads of this width."""
    with jax.ensure_compile_time_eval():
        q = jnp.ones((1, 2, 1, size), dtype)
        k = jnp.moveaxis(q, 1, 2)
        try:
            out = jax.jit(attend)(q, k, k, jnp.ones((1, 1, 2), bool))
            return bool(jnp.all(jnp.isfinite(out)))
        except Exception:  # whatever a driver, a library or a chip without the kernel raises
            return False
