"""Commit what is nearly decided (dParallel's decoding rule, arXiv 2509.26488)."""

from __future__ import annotations

from jaxtyping import Array, Key

from jaxdiff.policies.order import propose
from jaxdiff.types import Leaf, Proposal, Score, State, number, per_row, pytree


@pytree
class Entropy:
    """Commit every position whose entropy is at most `tau` nats; the loop forces the lowest."""

    tau: Leaf = number(default=0.5, low=0.0, high=1e3)

    waits = False

    def init(self, rows: int, window: int) -> State:
        del rows, window
        return ()

    def select(self, state: State, score: Score, key: Key[Array, " B"]) -> tuple[Proposal, State]:
        del key
        slack = per_row(self.tau) - score.entropy
        return propose(score, slack >= 0.0, score.sharpness, slack), state
