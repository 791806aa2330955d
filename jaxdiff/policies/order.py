"""Ranks, orders and random draws: the arithmetic that several policies share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdiff.types import Score


@dataclasses.dataclass(frozen=True)
class Order:
    """Who commits first.

    Attributes:
        priority: of a score and the rows' keys: higher goes first, in the form that float32 keeps apart near certainty.
        value: the published score of the same order; None where there is none.
        blind: it does not look at the candidate that was drawn (`Policy.blind`).
    """

    priority: Callable[[Score, Array], Float[Array, "B W"]]
    value: Callable[[Score], Float[Array, "B W"]] | None
    blind: bool = False


ORDERS = {
    "confidence": Order(lambda score, key: score.log_odds, lambda score: score.prob),
    "margin": Order(lambda score, key: score.certainty, lambda score: score.margin),
    "entropy": Order(lambda score, key: score.sharpness, lambda score: -score.entropy, blind=True),
    "random": Order(lambda score, key: uniform(key, score.positions), None, blind=True),
    "left": Order(lambda score, key: -score.positions.astype(jnp.float32), None, blind=True),
}


def ranks(priority: Float[Array, "B W"], eligible: Bool[Array, "B W"]) -> Int[Array, "B W"]:
    """0 for the first to commit. Ties go to the leftmost; whoever is not eligible ranks behind all who are."""
    order = jnp.lexsort((-priority, ~eligible), axis=1)  # stable; a NaN comes last of its kind
    return jnp.argsort(order, axis=1, stable=True)


def in_order(values: Float[Array, "B W"], rank: Int[Array, "B W"]) -> Float[Array, "B W"]:
    """`values` laid out by rank: column k holds the value of the position ranked k."""
    return jnp.take_along_axis(values, jnp.argsort(rank, axis=1), axis=1)


def uniform(keys: Array, positions: Int[Array, "B W"]) -> Float[Array, "B W"]:
    """One draw from U(0, 1) for each position, keyed by the row's key and the absolute position."""
    each = jax.vmap(jax.vmap(lambda key, at: jax.random.uniform(jax.random.fold_in(key, at)), (None, 0)))
    return each(keys, positions)


def gumbel(keys: Array, positions: Int[Array, "B W"]) -> Float[Array, "B W"]:
    """As `uniform`, from the standard Gumbel distribution: added to log-weights, the highest k are k draws."""
    return -jnp.log(-jnp.log(jnp.maximum(uniform(keys, positions), jnp.finfo(jnp.float32).tiny)))
