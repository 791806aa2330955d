"""Each chosen position gets its own candidate, whatever the others get."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Key

from jaxdiff.protocols import Passes
from jaxdiff.pytree import pytree
from jaxdiff.types import NEAR_TIE, PartState, Proposal, Score, Written


@pytree
class Parallel:
    """The proposal's tokens as they are, without a cheap pass. Exact where a step commits one position.

    Source: LLaDA `generate.py`, Fast-dLLM: every published loop that draws all positions of a step from their own
    marginals.
    """

    needs = frozenset()

    def init(self, rows: int, window: int) -> PartState:
        del rows, window
        return ()

    def write(
        self,
        state: PartState,
        score: Score,
        proposal: Proposal,
        commit: Bool[Array, "B W"],
        passes: Passes,
        key: Key[Array, " B"],
    ) -> tuple[Written, PartState]:
        del passes, key
        rows = commit.shape[0]
        written = Written(
            token=proposal.token,
            log_prob=score.log_prob_of(proposal.token),
            commit=commit,
            close=commit & (score.gap < NEAR_TIE),
            cheap=jnp.zeros((rows,), jnp.int32),
            work=jnp.zeros((rows,), jnp.float32),
        )
        return written, state
