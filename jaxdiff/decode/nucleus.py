"""Top-p and top-k without a sort and without [B, W, V]: the lowest logit that they leave, position by position.

A token stays if the mass of all that are more likely is at most p of the whole, and fewer than k are more likely. Both
only grow as a bound on the logit falls, so that the lowest bound that holds is found by its bits: float32 sorts as its
bits do once the sign is taken care of. Each pass over the tiles settles two of the 32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt32

from jaxdiff.types import Count, Leaf

BITS = 2  # settled by one pass, which tries 2^2 - 1 bounds: the CPU backend keeps a tile for each


def sortable(x: Float[Array, "*b"]) -> UInt32[Array, "*b"]:
    """Float32 as integers in the same order."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    return bits ^ jnp.where(bits >> 31 == 1, jnp.uint32(0xFFFFFFFF), jnp.uint32(0x80000000))


def lowest_kept(
    logits_of: Callable[[Int[Array, ""]], Float[Array, "B W v"]],
    tiles: int,
    scale: Float[Array, "B 1 1"],
    top_p: Leaf | None,
    top_k: Count | None,
) -> UInt32[Array, "B W"]:
    """The lowest logit that stays, `sortable`; mass is that of softmax(scale * logits).

    `logits_of` gives one of the tiles; it is called once for each in every pass.
    """
    shape = jax.eval_shape(logits_of, jax.ShapeDtypeStruct((), jnp.int32)).shape
    rows = shape[0]

    def over_tiles(body: Callable[[Any, Array], Any], start: Any) -> Any:
        indices = jnp.arange(tiles, dtype=jnp.int32)
        return jax.lax.scan(lambda carry, index: (body(carry, logits_of(index)), None), start, indices)[0]

    def limit(value: Leaf | Count | None) -> Float[Array, "B 1"]:
        every = jnp.inf if value is None else jnp.asarray(value).astype(jnp.float32)
        return jnp.broadcast_to(every, (rows,))[:, None]

    top = over_tiles(lambda top, x: jnp.maximum(top, jnp.max(x, axis=-1)), jnp.full(shape[:2], -jnp.inf))

    def mass_of(x: Float[Array, "B W v"]) -> Float[Array, "B W v"]:
        return jnp.exp(scale * (x - top[..., None]))

    whole = over_tiles(lambda mass, x: mass + jnp.sum(mass_of(x), axis=-1), jnp.zeros(shape[:2]))
    share, most = limit(top_p), limit(top_k)
    allowed = jnp.where(share < 1.0, share * whole, jnp.inf)

    def settle(done: Int[Array, ""], known: UInt32[Array, "B W"]) -> UInt32[Array, "B W"]:
        shift = (32 - BITS * (done + 1)).astype(jnp.uint32)
        below = (jnp.uint32(1) << shift) - jnp.uint32(1)
        digits = jnp.arange(2**BITS - 1, dtype=jnp.uint32) << shift
        bounds = known[..., None] | digits[None, None] | below  # the highest number with each digit but the last

        def count(carry: tuple[Array, Array], x: Float[Array, "B W v"]) -> tuple[Array, Array]:
            above = sortable(x)[..., None, :] > bounds[..., None]
            mass = jnp.sum(jnp.where(above, mass_of(x)[..., None, :], 0.0), axis=-1)
            return carry[0] + mass, carry[1] + jnp.sum(above, axis=-1, dtype=jnp.float32)

        mass, number = over_tiles(count, (jnp.zeros(bounds.shape), jnp.zeros(bounds.shape)))
        too_low = (mass > allowed[..., None]) | (number >= most[..., None])
        return known | jnp.sum(too_low, axis=-1, dtype=jnp.uint32) << shift

    return jax.lax.fori_loop(0, 32 // BITS, settle, jnp.zeros(shape[:2], jnp.uint32))
