"""Each chosen position gets its own candidate, whatever the others get."""

from __future__ import annotations

from jaxtyping import Array, Bool, Key

from jaxdiff.fills.base import FillBase, candidates
from jaxdiff.protocols import Passes
from jaxdiff.pytree import pytree
from jaxdiff.types import PartState, Proposal, Score, Written


@pytree
class Parallel(FillBase):
    """The proposal's tokens as they are, without a cheap pass. Exact where a step commits one position.

    Source: LLaDA `generate.py`, Fast-dLLM: every published loop that draws all positions of a step from their own
    marginals.
    """

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
        return candidates(score, proposal, commit), state
