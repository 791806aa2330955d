"""Commit what is well ahead of its runner-up."""

from __future__ import annotations

from jaxtyping import Array, Key

from jaxdiff.policies.base import PER_NAT, PolicyBase, propose
from jaxdiff.pytree import number, pytree
from jaxdiff.types import Leaf, PartState, Proposal, Score, per_row


@pytree
class Margin(PolicyBase):
    """Commit every position whose top probability exceeds the second by at least `tau`.

    The quantity is Dream's `topk_margin` (HKUNLP/Dream); as a threshold it needs no step count.
    """

    tau: Leaf = number(default=0.8, low=0.0, high=1.0)

    def select(self, state: PartState, score: Score, key: Key[Array, " B"]) -> tuple[Proposal, PartState]:
        del key
        slack = score.margin - per_row(self.tau)
        return propose(score, slack >= 0.0, score.certainty, PER_NAT * slack), state
