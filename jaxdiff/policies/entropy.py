"""Commit what is nearly decided (dParallel's decoding rule, arXiv 2509.26488)."""

from __future__ import annotations

from jaxtyping import Array, Key

from jaxdiff.policies.base import PolicyBase, propose
from jaxdiff.pytree import number, pytree
from jaxdiff.types import Leaf, PartState, Proposal, Score, per_row


@pytree
class Entropy(PolicyBase):
    """Commit every position whose entropy is at most `tau` nats; the loop forces the lowest."""

    tau: Leaf = number(default=0.5, low=0.0, high=1e3)

    blind = True

    def select(self, state: PartState, score: Score, key: Key[Array, " B"]) -> tuple[Proposal, PartState]:
        del key
        slack = per_row(self.tau) - score.entropy
        return propose(score, slack >= 0.0, score.sharpness, slack), state
