"""What the fills share: the defaults of the protocol, and what a fill that writes one after the other keeps."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdiff.protocols import Model
from jaxdiff.types import NEAR_TIE, NEVER, Params, PartState, Proposal, Score, Written


class FillBase:
    """A fill without a state that reads no keys and values, and goes with every model."""

    needs: frozenset[str] = frozenset()

    def check(self, model: Model, params: Params) -> None:
        del model, params

    def init(self, rows: int, window: int) -> PartState:
        del rows, window
        return ()


def candidates(score: Score, proposal: Proposal, commit: Bool[Array, "B W"]) -> Written:
    """The proposal's tokens as they are for all of `commit`, without a cheap pass."""
    rows = commit.shape[0]
    return Written(
        token=proposal.token,
        log_prob=score.log_prob_of(proposal.token),
        commit=commit,
        close=commit & (score.gap < NEAR_TIE),
        cheap=jnp.zeros((rows,), jnp.int32),
        work=jnp.zeros((rows,), jnp.float32),
    )


def best_of(priority: Float[Array, "B W"], among: Bool[Array, "B W"]) -> tuple[Int[Array, "B 1"], Bool[Array, " B"]]:
    """The position of highest priority, the leftmost where several tie; and whether that hung on less than NEAR_TIE.

    A NaN ranks last; what is put off (NEVER) ties with its like by intent.
    """
    ranked = _ranked(priority, among)
    at = jnp.argmax(ranked, axis=1, keepdims=True).astype(jnp.int32)
    others = jnp.where(jnp.arange(ranked.shape[1])[None] == at, -jnp.inf, ranked)
    top, next_best = jnp.max(ranked, axis=1), jnp.max(others, axis=1)
    return at, (top - next_best < NEAR_TIE) & (next_best > NEVER)


def highest(
    priority: Float[Array, "B W"], among: Bool[Array, "B W"], k: Int[Array, ""] | Int[Array, "B 1"]
) -> tuple[Bool[Array, "B W"], Bool[Array, " B"]]:
    """The k positions of highest priority, ties to the leftmost; and whether the last of them hung on less than
    NEAR_TIE.
    """
    ranked = _ranked(priority, among)
    rank = jnp.argsort(jnp.argsort(-ranked, axis=1, stable=True), axis=1, stable=True)
    chosen = among & (rank < k)
    lowest_in = jnp.min(jnp.where(chosen, ranked, jnp.inf), axis=1)
    highest_out = jnp.max(jnp.where(among & ~chosen, ranked, -jnp.inf), axis=1)
    return chosen, (jnp.abs(lowest_in - highest_out) < NEAR_TIE) & (highest_out > NEVER)


def _ranked(priority: Float[Array, "B W"], among: Bool[Array, "B W"]) -> Float[Array, "B W"]:
    """What is not among them ranks behind a NaN, which ranks as what is put off."""
    return jnp.where(among, jnp.nan_to_num(priority, nan=NEVER, neginf=NEVER), -jnp.inf)
