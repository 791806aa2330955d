"""Commit what a learned filter takes for final already (Learn2PD)."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxdiff.policies.base import PolicyBase, propose
from jaxdiff.policies.filters import Evidence, Filter, evidence_of
from jaxdiff.pytree import number, pytree
from jaxdiff.types import Leaf, PartState, Proposal, Score, per_row


@pytree
class Learned(PolicyBase):
    """Commit every position whose filter says "final" with more than `tau`; the loop forces the most confident one.

    The published decode joins the filter with the fixed quota: `any_of(Learned(filter), Fixed())`.

    Source: ims-kdks/Learning-to-Parallel-Decoding `generate.py`.
    """

    filter: Filter
    tau: Leaf = number(default=0.96, low=0.0, high=1.0)

    def init(self, rows: int, window: int) -> PartState:
        """Raises InputError for a block length that the filter cannot judge."""
        del rows
        self.filter.check(window)
        return ()

    def slack(self, seen: Evidence) -> Float[Array, "B W"]:
        """How far the filter's logits lie above that of `tau`: what is above 0 is committed."""
        tau = per_row(self.tau)
        return self.filter(seen) - (jnp.log(tau) - jnp.log1p(-tau))

    def select(self, state: PartState, score: Score, key: Key[Array, " B"]) -> tuple[Proposal, PartState]:
        del key
        slack = self.slack(evidence_of(score))
        # A candidate without mass (an end-of-text put off to the last) is never vouched for.
        return propose(score, (slack > 0.0) & (score.prob > 0.0), score.log_odds, slack), state
