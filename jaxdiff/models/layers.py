"""What the families share: normalisation, rotary positions, attention."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class RMSNorm(nn.Module):
    eps: float

    @nn.compact
    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        weight = self.param("weight", nn.initializers.ones, (x.shape[-1],))
        full = x.astype(jnp.float32)
        full = full * jax.lax.rsqrt(jnp.mean(full * full, axis=-1, keepdims=True) + self.eps)
        return full.astype(x.dtype) * jnp.expand_dims(weight.astype(x.dtype), range(x.ndim - 1))


def rope_table(
    positions: Int[Array, "B T"], head_dim: int, theta: float
) -> tuple[Float[Array, "B T 1 h"], Float[Array, "B T 1 h"]]:
    """Cos and sin, float32, one column for each pair of dimensions (h = head_dim / 2)."""
    frequency = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angle = positions[..., None, None].astype(jnp.float32) * frequency[None, None, None]
    return jnp.cos(angle), jnp.sin(angle)


def rotate(
    x: Float[Array, "B T n E"], cos: Float[Array, "B T 1 h"], sin: Float[Array, "B T 1 h"]
) -> Float[Array, "B T n E"]:
    """Half-split RoPE: dimension i turns with i + E/2. In float32, cast back."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)


def attend(
    q: Float[Array, "B T H E"], k: Float[Array, "B S K E"], v: Float[Array, "B S K E"], valid: Bool[Array, "B S"]
) -> Float[Array, "B T H E"]:
    """Bidirectional attention over the valid keys, grouped queries allowed (H a multiple of K); float32 softmax.

    Heads go in front of positions: in that layout both products are plain batched ones, which XLA's CPU backend
    runs about twice as fast as `jax.nn.dot_product_attention`.
    """
    rows, length, heads, size = q.shape
    groups = k.shape[2]
    q = jnp.moveaxis(q.reshape(rows, length, groups, heads // groups, size), 1, 3)  # B K R T E
    k, v = jnp.moveaxis(k, 1, 2)[:, :, None], jnp.moveaxis(v, 1, 2)[:, :, None]  # B K 1 S E
    logits = jnp.matmul(q * (size**-0.5), jnp.swapaxes(k, -1, -2), preferred_element_type=jnp.float32)
    bias = jnp.where(valid, 0.0, jnp.finfo(jnp.float32).min)[:, None, None, None, :]
    weights = jax.nn.softmax(logits + bias, axis=-1).astype(v.dtype)
    return jnp.moveaxis(jnp.matmul(weights, v), 3, 1).reshape(rows, length, heads, size)
