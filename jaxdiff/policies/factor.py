"""Commit as many as their confidences can bear together (Fast-dLLM, arXiv 2505.22618, theorem 1)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from jaxdiff.policies.base import PER_NAT, PolicyBase, propose
from jaxdiff.policies.order import ranks
from jaxdiff.pytree import number, pytree
from jaxdiff.types import Leaf, PartState, Proposal, Score, per_row


@pytree
class Factor(PolicyBase):
    """Commit the largest n with (n + 1) (1 - c_n) <= `f`, c_n the n-th highest probability.

    1 - c falls out of the log-odds without cancellation. Forks of Fast-dLLM accept one token more when their loop
    ends at the last rank; this follows the inequality.
    """

    f: Leaf = number(default=1.0, low=0.0, high=1e6)

    def select(self, state: PartState, score: Score, key: Key[Array, " B"]) -> tuple[Proposal, PartState]:
        del key
        rank = ranks(score.log_odds, score.eligible)
        doubt = jax.nn.sigmoid(-score.log_odds)
        slack = per_row(self.f) / (rank + 2).astype(jnp.float32) - doubt
        return propose(score, slack >= 0.0, score.log_odds, PER_NAT * slack), state
