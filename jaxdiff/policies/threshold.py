"""Commit what is confident enough (Fast-dLLM, arXiv 2505.22618)."""

from __future__ import annotations

from jaxtyping import Array, Key

from jaxdiff.policies.base import PER_NAT, PolicyBase, propose
from jaxdiff.pytree import number, pytree
from jaxdiff.types import Leaf, PartState, Proposal, Score, per_row


@pytree
class Threshold(PolicyBase):
    """Commit every position whose probability is at least `tau`; the loop forces the most confident one."""

    tau: Leaf = number(default=0.9, low=0.0, high=1.0)

    def select(self, state: PartState, score: Score, key: Key[Array, " B"]) -> tuple[Proposal, PartState]:
        del key
        slack = score.prob - per_row(self.tau)
        return propose(score, slack >= 0.0, score.log_odds, PER_NAT * slack), state
