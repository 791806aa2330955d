"""Commit what already equals the standard decode's answer: the ceiling of all that only choose when to commit.

Learned parallel decoding (Learn2PD, ims-kdks/Learning-to-Parallel-Decoding) calls it EGP, extremely greedy parallel.
A text that differs from the reference may be right as well, so its accuracy belongs beside its speed.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from jaxdiff.policies.order import reference_block
from jaxdiff.types import Proposal, Score, State, each_row, pytree


@pytree
class Oracle:
    """Commit every position whose candidate is the reference's token; where none is, the loop forces one to it.

    Attributes:
        reference: the canvas that the standard decode ends with (`Result.tokens`); None lets `decode` and `infill` find
            it first, with one token a step and all else the same. Its forwards are not counted.
    """

    reference: Int[Array, "B L"] | None = each_row(default=None)

    waits = False

    @property
    def lacks_reference(self) -> bool:
        return self.reference is None

    def bind(self, reference: Int[Array, "B L"]) -> Oracle:
        """The same policy with the reference that it lacks."""
        return dataclasses.replace(self, reference=reference) if self.lacks_reference else self

    def init(self, rows: int, window: int) -> State:
        del rows, window
        return ()

    def select(self, state: State, score: Score, key: Key[Array, " B"]) -> tuple[Proposal, State]:
        """Raises InputError, while tracing, for a reference of another shape than the canvas."""
        del key
        wanted = reference_block("oracle", self.reference, score)
        agreed = (score.token == wanted) & score.eligible
        close = jnp.zeros_like(agreed)
        return Proposal(commit=agreed, accepted=agreed, close=close, priority=score.log_odds, token=wanted), state
