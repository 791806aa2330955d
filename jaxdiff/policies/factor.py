"""Commit as many as their confidences can bear together (Fast-dLLM, arXiv 2505.22618, theorem 1)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from jaxdiff.policies.order import PER_NAT, propose, ranks
from jaxdiff.types import Leaf, Proposal, Score, State, number, per_row, pytree


@pytree
class Factor:
    """Commit the largest n with (n + 1) (1 - c_n) <= `f`, c_n the n-th highest probability.

    1 - c falls out of the log-odds without cancellation. Forks of Fast-dLLM accept one token more when their loop
    ends at the last rank; this follows the inequality.
    """

    f: Leaf = number(default=1.0, low=0.0, high=1e6)

    waits = False

    def init(self, rows: int, window: int) -> State:
        del rows, window
        return ()

    def select(self, state: State, score: Score, key: Key[Array, " B"]) -> tuple[Proposal, State]:
        del key
        rank = ranks(score.log_odds, score.eligible)
        doubt = jax.nn.sigmoid(-score.log_odds)
        slack = per_row(self.f) / (rank + 2).astype(jnp.float32) - doubt
        return propose(score, slack >= 0.0, score.log_odds, PER_NAT * slack), state
