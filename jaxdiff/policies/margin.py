"""Commit what is well ahead of its runner-up."""

from __future__ import annotations

from jaxtyping import Array, Key

from jaxdiff.policies.order import PER_NAT, propose
from jaxdiff.types import Leaf, Proposal, Score, State, number, per_row, pytree


@pytree
class Margin:
    """Commit every position whose top probability exceeds the second by at least `tau`.

    The quantity is Dream's `topk_margin` (HKUNLP/Dream); as a threshold it needs no step count.
    """

    tau: Leaf = number(default=0.8, low=0.0, high=1.0)

    waits = False

    def init(self, rows: int, window: int) -> State:
        del rows, window
        return ()

    def select(self, state: State, score: Score, key: Key[Array, " B"]) -> tuple[Proposal, State]:
        del key
        slack = score.margin - per_row(self.tau)
        return propose(score, slack >= 0.0, score.certainty, PER_NAT * slack), state
