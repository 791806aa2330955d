"""Commit what is more confident than the average (MDiff4STR, arXiv 2512.01422): a threshold without a number."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from jaxdiff.policies.base import PolicyBase, propose
from jaxdiff.pytree import pytree
from jaxdiff.types import PartState, Proposal, Score


@pytree
class AboveMean(PolicyBase):
    """Commit the eligible positions whose probability exceeds the mean of the eligible ones."""

    def select(self, state: PartState, score: Score, key: Key[Array, " B"]) -> tuple[Proposal, PartState]:
        del key
        # Near certainty float32 probabilities differ from their mean by rounding alone: what they lack to 1 does not.
        doubt = jax.nn.log_sigmoid(-score.log_odds)
        count = jnp.sum(score.eligible, axis=1, keepdims=True)
        whole = jax.nn.logsumexp(jnp.where(score.eligible, doubt, -jnp.inf), axis=1, keepdims=True)
        slack = whole - jnp.log(jnp.maximum(count, 1).astype(jnp.float32)) - doubt
        slack = jnp.where(count > 1, slack, -jnp.inf)  # the last one is its own mean: the loop forces it
        return propose(score, slack > 0.0, score.log_odds, slack), state
