"""Ranks and quotas: the arithmetic that several policies share."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdiff.types import Proposal, Score

ORDERS = ("confidence", "margin", "entropy", "random")


def priority_of(score: Score, order: str) -> Float[Array, "B W"]:
    """Higher commits first. Each order in the form that float32 keeps apart near certainty; not for `random`."""
    return {"confidence": score.log_odds, "margin": score.certainty, "entropy": -score.entropy}[order]


def ranks(priority: Float[Array, "B W"], eligible: Bool[Array, "B W"]) -> Int[Array, "B W"]:
    """0 for the first to commit. Ties go to the leftmost; whoever is not eligible ranks behind all who are."""
    order = jnp.lexsort((-priority, ~eligible), axis=1)  # stable; a NaN comes last of its kind
    return jnp.argsort(order, axis=1, stable=True)


def in_order(values: Float[Array, "B W"], rank: Int[Array, "B W"]) -> Float[Array, "B W"]:
    """`values` laid out by rank: column k holds the value of the position ranked k."""
    return jnp.take_along_axis(values, jnp.argsort(rank, axis=1), axis=1)


def propose(score: Score, accepted: Bool[Array, "B W"], priority: Float[Array, "B W"]) -> Proposal:
    """The proposal of a policy that commits just what it accepts."""
    accepted = accepted & score.eligible
    return Proposal(commit=accepted, accepted=accepted, priority=priority, token=score.token)


def uniform(keys: Array, positions: Int[Array, "B W"]) -> Float[Array, "B W"]:
    """One draw from U(0, 1) for each position, keyed by the row's key and the absolute position."""
    each = jax.vmap(jax.vmap(lambda key, at: jax.random.uniform(jax.random.fold_in(key, at)), (None, 0)))
    return each(keys, positions)
