"""Commit as many as a budget of entropy allows (EB sampler, arXiv 2505.24857)."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Key

from jaxdiff.policies.order import in_order, propose, ranks
from jaxdiff.types import Leaf, Proposal, Score, State, number, per_row, pytree


@pytree
class EntropyBounded:
    """Commit the longest run, lowest entropy first, whose summed entropy less its largest is at most `gamma` nats.

    The sum without its largest bounds what committing the run at once loses against one by one.
    """

    gamma: Leaf = number(default=0.1, low=0.0, high=1e6)

    waits = False

    def init(self, rows: int, window: int) -> State:
        del rows, window
        return ()

    def select(self, state: State, score: Score, key: Key[Array, " B"]) -> tuple[Proposal, State]:
        del key
        rank = ranks(score.sharpness, score.eligible)
        by_rank = in_order(jnp.where(score.eligible, score.entropy, 0.0), rank)
        before = jnp.cumsum(by_rank, axis=1) - by_rank
        spent = jnp.take_along_axis(before, rank, axis=1)
        slack = jnp.where(rank == 0, jnp.inf, per_row(self.gamma) - spent)  # the first costs nothing, whatever gamma
        # A candidate without mass (an end-of-text put off to the last) is never vouched for.
        return propose(score, (slack >= 0.0) & (score.prob > 0.0), score.sharpness, slack), state
