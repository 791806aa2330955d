"""Commit what is confident enough (Fast-dLLM, arXiv 2505.22618)."""

from __future__ import annotations

from jaxtyping import Array, Key

from jaxdiff.policies.order import PER_NAT, propose
from jaxdiff.types import Leaf, Proposal, Score, State, number, per_row, pytree


@pytree
class Threshold:
    """Commit every position whose probability is at least `tau`; the loop forces the most confident one."""

    tau: Leaf = number(default=0.9, low=0.0, high=1.0)

    waits = False

    def init(self, rows: int, window: int) -> State:
        del rows, window
        return ()

    def select(self, state: State, score: Score, key: Key[Array, " B"]) -> tuple[Proposal, State]:
        del key
        slack = score.prob - per_row(self.tau)
        return propose(score, slack >= 0.0, score.log_odds, PER_NAT * slack), state
