"""Attention, behind one function: each device gets what is fastest there.

attend: on a TPU, for many queries that see alike, a Pallas kernel (`jaxdiff.models.splash`); on an NVIDIA GPU, in half
    precision, cuDNN's (`jaxdiff.models.cudnn`); else plain products
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxdiff.models import cudnn, splash
from jaxdiff.parallel.mesh import platform, weights_are_spread

# Attention logits that are held at once, in elements. Rows whose logits leave a CPU's cache take two to four times as
# long as one after the other; an accelerator wants many at once, but those of 8B models are 52 million each at 1,280.
ROOM, ELSEWHERE = {"cpu": 2**20}, 2**26  # by platform; 2**26 are 256 MB; a head alone may take more
QUERIES = 2048  # of a head that are attended for at once
HIDDEN = -1e30  # added to the logits of a key that is not attended to


def attend(
    q: Float[Array, "B T H E"], k: Float[Array, "B K S E"], v: Float[Array, "B K S E"], mask: Bool[Array, "B t S"]
) -> Float[Array, "B T H E"]:
    """Attention over the keys that the mask lets through, grouped queries allowed (H a multiple of K); float32 softmax.

    What a row whose mask lets nothing through gets is finite, and nothing else is said of it.
    """
    if platform() == "tpu" and splash.fits(q, k, mask):
        return splash.attend(q, k, v, mask[:, 0])
    if platform() == "gpu" and cudnn.fits(q, k):
        return cudnn.attend(q, k, v, mask)
    return _products(q, k, v, mask)


def _products(
    q: Float[Array, "B T H E"], k: Float[Array, "B K S E"], v: Float[Array, "B K S E"], mask: Bool[Array, "B t S"]
) -> Float[Array, "B T H E"]:
    """As `attend`, in operations of XLA.

    Heads stand in front of positions: in that layout both products are plain batched ones, which XLA's CPU backend
    runs about twice as fast as `jax.nn.dot_product_attention`. The logits are the largest array there is, so no more
    rows, and of a row no more heads, go together than ROOM has space for, and of a head no more than QUERIES queries.
    """
    rows, length, heads, size = q.shape
    groups = k.shape[1]
    q = jnp.moveaxis(q.reshape(rows, length, groups, heads // groups, size), 1, 3)  # B K R T E
    room = ROOM.get(platform(), ELSEWHERE)
    each = heads // groups * length * k.shape[2]

    def row(
        q: Float[Array, "K R T E"], k: Float[Array, "K S E"], v: Float[Array, "K S E"], mask: Bool[Array, "t S"]
    ) -> Float[Array, "K R T E"]:
        # Where heads lie over devices a loop over them would gather them all on each.
        count = groups if weights_are_spread() else room // each
        return _together(lambda q, k, v: _attend_head(q, k, v, mask), (q, k, v), count)

    out = _together(row, (q, k, v, mask), room // (each * groups))
    return jnp.moveaxis(out, 3, 1).reshape(rows, length, heads, size)


def _together(each: Callable[..., Array], arrays: tuple[Array, ...], count: int) -> Array:
    """`each` over the first axis, at most so many at a time, in pieces as even as may be."""
    length = arrays[0].shape[0]
    pieces = -(-length // max(1, count))
    return jax.lax.map(lambda one: each(*one), arrays, batch_size=-(-length // pieces))


def _attend_head(
    q: Float[Array, "R T E"], k: Float[Array, "S E"], v: Float[Array, "S E"], mask: Bool[Array, "t S"]
) -> Float[Array, "R T E"]:
    """The queries of one head's keys; more than QUERIES in equal pieces, the last filled up with zeros."""

    def piece(q: Float[Array, "R c E"], mask: Bool[Array, "u S"]) -> Float[Array, "R c E"]:
        # An added bias and a division of what comes out: XLA's CPU backend goes fewer times over the logits than for a
        # `where` and a softmax, two thirds of the time at 1,120 positions.
        logits = jnp.matmul(q * (size**-0.5), k.T, preferred_element_type=jnp.float32)
        logits = logits + jnp.where(mask, 0.0, HIDDEN)[None]
        weights = jnp.exp(logits - jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True)))
        mixed = jnp.matmul(weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
        return (mixed / jnp.sum(weights, axis=-1, keepdims=True)).astype(v.dtype)

    def split(x: Array, axis: int) -> Array:
        wide = jnp.pad(x, [(0, count * each - length if i == axis else 0) for i in range(x.ndim)])
        return jnp.moveaxis(wide.reshape(*x.shape[:axis], count, each, *x.shape[axis + 1 :]), axis, 0)

    share, length, size = q.shape
    count = -(-length // QUERIES)
    each = -(-length // count)
    if count == 1:
        return piece(q, mask)
    if mask.shape[0] == 1:
        out = jax.lax.map(lambda part: piece(part, mask), split(q, 1))
    else:
        out = jax.lax.map(lambda parts: piece(*parts), (split(q, 1), split(mask, 0)))
    return jnp.moveaxis(out, 0, 1).reshape(share, count * each, size)[:, :length]
