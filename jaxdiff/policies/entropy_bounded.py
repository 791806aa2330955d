"""Commit as many as a budget of entropy allows (EB sampler, arXiv 2505.24857)."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Key

from jaxdiff.policies.base import PolicyBase, propose
from jaxdiff.policies.order import in_order, ranks
from jaxdiff.pytree import number, pytree
from jaxdiff.types import Leaf, PartState, Proposal, Score, per_row


@pytree
class EntropyBounded(PolicyBase):
    """Commit the longest run, lowest entropy first, whose summed entropy less its largest is at most `gamma` nats.

    The sum without its largest bounds what committing the run at once loses against one by one.
    """

    gamma: Leaf = number(default=0.1, low=0.0, high=1e6)

    blind = True

    def select(self, state: PartState, score: Score, key: Key[Array, " B"]) -> tuple[Proposal, PartState]:
        del key
        rank = ranks(score.sharpness, score.eligible)
        by_rank = in_order(jnp.where(score.eligible, score.entropy, 0.0), rank)
        before = jnp.cumsum(by_rank, axis=1) - by_rank
        spent = jnp.take_along_axis(before, rank, axis=1)
        slack = jnp.where(rank == 0, jnp.inf, per_row(self.gamma) - spent)  # the first costs nothing, whatever gamma
        # A candidate without mass (an end-of-text put off to the last) is never vouched for.
        return propose(score, (slack >= 0.0) & (score.prob > 0.0), score.sharpness, slack), state
