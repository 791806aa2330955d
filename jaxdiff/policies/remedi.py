"""Keep the best of all positions, masked and committed alike: RemeDi's decoding (maple-research-lab/RemeDi).

At step i of S of a block of n positions the ceil((i + 1) n / S) positions of the highest score keep a token: those that
are masked commit their candidate, those that were committed keep the one they have; all others are masked again. The
score of a position is the log-probability of the token that it would keep, in the belief of this step.

The published `inference.py` ranks by that token's raw logit, though the model has a head of its own for confidences;
the logarithm of the probability is the same up to what the whole position shares. Published with n a multiple of S.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from jaxdiff.policies.base import PolicyBase
from jaxdiff.policies.order import in_order, ranks
from jaxdiff.pytree import number, pytree
from jaxdiff.types import NEAR_TIE, Count, PartState, Proposal, Score

MOST = 2**14  # steps: times the positions of a block it is an int32


@pytree
class Remedi(PolicyBase):
    """Keep a growing share of the block, chosen anew in each step; a block always takes all its steps."""

    steps: Count = number(default=32, low=1, high=MOST, whole=True)

    waits = True
    revises = True

    def budget(self, rows: int, window: int) -> Int[Array, " B"]:
        del window
        return jnp.broadcast_to(jnp.asarray(self.steps), (rows,))

    def select(self, state: PartState, score: Score, key: Key[Array, " B"]) -> tuple[Proposal, PartState]:
        del key
        steps = self.budget(score.start.shape[0], 0)
        own = score.eligible | score.editable
        count = jnp.sum(own, axis=1, dtype=jnp.int32)
        done = jnp.minimum(score.block_step + 1, steps)
        kept = (done * count + steps - 1) // steps
        value = jnp.where(score.masked, score.log_prob, score.standing)
        rank = ranks(value, own)
        keep = own & (rank < kept[:, None])
        ordered = in_order(value, rank)
        last, first = (
            jnp.take_along_axis(ordered, jnp.clip(kept - back, 0, rank.shape[1] - 1)[:, None], axis=1)
            for back in (1, 0)
        )
        tie = (last - first < NEAR_TIE) & ((kept > 0) & (kept < count))[:, None]
        commit = keep & score.eligible
        proposal = Proposal(
            commit=commit,
            accepted=commit,
            close=tie & (jnp.abs(value - first) < NEAR_TIE) & own,
            priority=score.log_odds,
            token=score.token,
            remask=~keep & score.editable,
            edit=jnp.zeros_like(commit),
            hold=score.block_step + 1 < steps,
        )
        return proposal, state
