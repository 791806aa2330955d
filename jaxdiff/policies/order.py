"""Ranks and quotas: the arithmetic that several policies share."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdiff.types import NEAR_TIE, InputError, Proposal, Score

PER_NAT = 4.0  # a log-odds gap of g moves no probability by more than g / 4
ORDERS = ("confidence", "margin", "entropy", "random")


def priority_of(score: Score, order: str) -> Float[Array, "B W"]:
    """Higher commits first. Each order in the form that float32 keeps apart near certainty; not for `random`."""
    return {"confidence": score.log_odds, "margin": score.certainty, "entropy": score.sharpness}[order]


def value_of(score: Score, order: str) -> Float[Array, "B W"]:
    """The published score that an order ranks by; `priority_of` has the same order."""
    return {"confidence": score.prob, "margin": score.margin, "entropy": -score.entropy}[order]


def ranks(priority: Float[Array, "B W"], eligible: Bool[Array, "B W"]) -> Int[Array, "B W"]:
    """0 for the first to commit. Ties go to the leftmost; whoever is not eligible ranks behind all who are."""
    order = jnp.lexsort((-priority, ~eligible), axis=1)  # stable; a NaN comes last of its kind
    return jnp.argsort(order, axis=1, stable=True)


def in_order(values: Float[Array, "B W"], rank: Int[Array, "B W"]) -> Float[Array, "B W"]:
    """`values` laid out by rank: column k holds the value of the position ranked k."""
    return jnp.take_along_axis(values, jnp.argsort(rank, axis=1), axis=1)


def propose(
    score: Score, accepted: Bool[Array, "B W"], priority: Float[Array, "B W"], slack: Float[Array, "B W"]
) -> Proposal:
    """The proposal of a policy that commits just what it accepts.

    `slack`: how far each score lies from the bound that it was compared with, either side; in nats, or `PER_NAT` times
    a difference of probabilities.
    """
    accepted = accepted & score.eligible
    close = jnp.abs(slack) < NEAR_TIE
    return Proposal(commit=accepted, accepted=accepted, close=close, priority=priority, token=score.token)


def reference_block(policy: str, reference: Int[Array, "B L"] | None, score: Score) -> Int[Array, "B W"]:
    """The block that `score` is about, out of a policy's reference.

    A canvas may overhang its reference by less than a block, which is cut off in the end: any candidate will do there.

    Raises InputError, while tracing, for a reference that is missing or of another shape than the canvas.
    """
    rows, length = score.canvas.shape
    window = score.masked.shape[1]
    if reference is None or reference.shape[0] != rows or not 0 <= length - reference.shape[1] < window:
        found = None if reference is None else reference.shape
        raise InputError(f"{policy}: found a reference of shape {found}, expected the canvas' {score.canvas.shape}")
    known = reference.shape[1]
    column = score.start[:, None] + jnp.arange(window, dtype=jnp.int32)[None]
    wanted = jnp.take_along_axis(reference, jnp.minimum(column, known - 1), axis=1)
    return wanted if known == length else jnp.where(column < known, wanted, score.token)


def uniform(keys: Array, positions: Int[Array, "B W"]) -> Float[Array, "B W"]:
    """One draw from U(0, 1) for each position, keyed by the row's key and the absolute position."""
    each = jax.vmap(jax.vmap(lambda key, at: jax.random.uniform(jax.random.fold_in(key, at)), (None, 0)))
    return each(keys, positions)


def gumbel(keys: Array, positions: Int[Array, "B W"]) -> Float[Array, "B W"]:
    """As `uniform`, from the standard Gumbel distribution: added to log-weights, the highest k are k draws."""
    return -jnp.log(-jnp.log(jnp.maximum(uniform(keys, positions), jnp.finfo(jnp.float32).tiny)))
