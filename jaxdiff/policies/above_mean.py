"""Commit what is more confident than the average (MDiff4STR, arXiv 2512.01422): a threshold without a number."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Key

from jaxdiff.policies.order import PER_NAT, propose
from jaxdiff.types import Proposal, Score, State, pytree


@pytree
class AboveMean:
    """Commit the eligible positions whose probability exceeds the mean of the eligible ones."""

    waits = False

    def init(self, rows: int, window: int) -> State:
        del rows, window
        return ()

    def select(self, state: State, score: Score, key: Key[Array, " B"]) -> tuple[Proposal, State]:
        del key
        count = jnp.maximum(jnp.sum(score.eligible, axis=1, keepdims=True), 1).astype(jnp.float32)
        mean = jnp.sum(jnp.where(score.eligible, score.prob, 0.0), axis=1, keepdims=True) / count
        slack = jnp.where(count > 1, score.prob - mean, -jnp.inf)  # the last one is its own mean: the loop forces it
        return propose(score, slack > 0.0, score.log_odds, PER_NAT * slack), state
