"""Commit what already equals the standard decode's answer: the ceiling of all that only choose when to commit.

Learned parallel decoding (Learn2PD, ims-kdks/Learning-to-Parallel-Decoding) calls it EGP, extremely greedy parallel.
A text that differs from the reference may be right as well, so its accuracy belongs beside its speed.
"""

from __future__ import annotations

from jaxtyping import Array, Key

from jaxdiff.policies.base import PolicyBase, propose
from jaxdiff.pytree import pytree
from jaxdiff.types import REFERENCE, PartState, Proposal, Score


@pytree
class Oracle(PolicyBase):
    """Commit every position whose candidate is the reference's token; where none is, the loop forces one to it.

    The reference is the canvas that the standard decode ends with: `decode(reference=)`, or, where that is not given,
    the answer of one token a step with all else the same, found first and not counted.
    """

    needs = frozenset({REFERENCE})

    def select(self, state: PartState, score: Score, key: Key[Array, " B"]) -> tuple[Proposal, PartState]:
        del key
        assert score.reference is not None
        return propose(score, score.token == score.reference, score.log_odds, token=score.reference), state
