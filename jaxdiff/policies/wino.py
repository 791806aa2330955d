"""Wide in, narrow out: WINO's decoding (arXiv 2507.18578, Feng-Hong/WINO-DLLM `LLaDA/decoding.py`).

Each forward commits what is masked and surer than `tau`, the surest of all in any case, and takes back what the block
has committed and its shadow finds less likely than `revoke`. The shadow is a [MASK] at each position of the block,
beside the canvas, that sees all but the position's own token: what the model would write there had it not committed yet
(`Score.alone`). The forward is fed as many tokens more as the block has, and `work` counts them.

At most a share of 7 in 10 of the block's masks is committed at once, between 5 and 20 positions, the surest first. No
more is taken back than the forward before committed, less one, the least likely first; and nothing by a forward that
commits a single position.

Published for LLaDA, blocks of 128, `revoke` 0.9, and `tau` 0.6 (GSM8K), 0.7 (MATH-500, HumanEval, Sudoku), 0.8 (MBPP),
0.5 (Countdown, ARC). Not for models whose logits are shifted by one (Dream), which have no such position.

What differs on purpose: the published loop takes one row, and gives [MASK] a share of the probability. Its shadow has
a token for each position of the block; here none past a row's end. What was given inside a block stays. Where a fill
or `cap` commits less than this says, what was committed is what counts.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from jaxdiff.policies.base import PER_NAT, PolicyBase, with_best
from jaxdiff.policies.order import in_order, ranks
from jaxdiff.pytree import number, pytree
from jaxdiff.types import NEAR_TIE, SHADOW, Leaf, Proposal, Score, per_row

TENTHS = 7  # of the block's masks that a forward commits at most,
LEAST, MOST = 5, 20  # but so many, and no more


@pytree
class Wino(PolicyBase):
    """Commit above `tau`, and take back what is less likely than `revoke` without itself.

    Attributes:
        tau: probability that a commit must exceed.
        revoke: probability that a committed token must have in the shadow to stay.
    """

    tau: Leaf = number(default=0.6, low=0.0, high=1.0)
    revoke: Leaf = number(default=0.9, low=0.0, high=1.0)

    revises = True
    needs = frozenset({SHADOW})

    def budget(self, rows: int, window: int) -> Int[Array, " B"]:
        """A forward takes back fewer than the one before committed, so that each leaves a mask less for good."""
        return jnp.full((rows,), window, jnp.int32)

    def init(self, rows: int, window: int) -> Int[Array, " B"]:
        """How many masks the block would have, had the forward before committed nothing."""
        del window
        return jnp.zeros((rows,), jnp.int32)

    def select(self, state: Int[Array, " B"], score: Score, key: Key[Array, " B"]) -> tuple[Proposal, Int[Array, " B"]]:
        del key
        assert score.alone is not None
        masks = jnp.sum(score.eligible, axis=1, dtype=jnp.int32)
        most = jnp.clip(TENTHS * masks // 10, LEAST, MOST)
        slack = score.prob - per_row(self.tau)
        sure = (slack > 0.0) & score.eligible
        commit = sure & (ranks(score.log_odds, sure) < most[:, None])
        commit, tie = with_best(commit, score.log_odds, score.eligible)

        left = jnp.sum(score.masked, axis=1, dtype=jnp.int32)  # past the row's end too: its end may move
        before = state - left  # what was committed; in a block's first forward there is nothing to take back
        among = score.editable & (jnp.sum(commit, axis=1) > 1)[:, None]
        doubt = jnp.exp(score.alone) - per_row(self.revoke)
        doubted = among & (doubt < 0.0)
        rank = ranks(-score.alone, doubted)
        remask = doubted & (rank < before[:, None] - 1)

        ordered = in_order(score.alone, rank)
        last, first = (
            jnp.take_along_axis(ordered, jnp.clip(before - back, 0, rank.shape[1] - 1)[:, None], axis=1)
            for back in (2, 1)
        )
        cut = (before > 1) & (jnp.sum(doubted, axis=1, dtype=jnp.int32) >= before)
        close = cut[:, None] & (first - last < NEAR_TIE) & doubted & (jnp.abs(score.alone - first) < NEAR_TIE)
        close |= among & (jnp.abs(PER_NAT * doubt) < NEAR_TIE)
        close |= score.eligible & (jnp.abs(PER_NAT * slack) < NEAR_TIE)
        proposal = Proposal(
            commit=commit,
            accepted=sure,
            close=close | tie,
            priority=score.log_odds,
            token=score.token,
            remask=remask,
            edit=jnp.zeros_like(commit),
            hold=jnp.zeros_like(commit[:, 0]),
        )
        return proposal, left + jnp.sum(remask, axis=1, dtype=jnp.int32)
