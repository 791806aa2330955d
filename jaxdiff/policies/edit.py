"""Commits that may yet be overwritten: the decoding of LLaDA2.1 (inclusionAI/LLaDA2.1-mini `modeling_llada2_moe.py`).

Each forward commits what is masked and surer than `tau`, the surest of all in any case, and overwrites what the block
has committed where the candidate is another and surer than `edit`. A block is done when a forward finds no mask and
overwrites nothing, or after `post` forwards that found no mask.

Published for LLaDA2.1, blocks of 32, temperature 0, `post=16`: tau=0.7,edit=0.5 for quality, tau=0.5,edit=0 for speed.

What differs on purpose: the published loop may write [MASK] back where that is the candidate; here [MASK] never is one.
Its cache is none; under cache `block` the last forward of a block, which changed nothing, leaves the keys and values
that are kept, and only a block whose `post` ran out on a change has a forward that stores them.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from jaxdiff.policies.base import PER_NAT, PolicyBase, with_best
from jaxdiff.pytree import number, pytree
from jaxdiff.types import NEAR_TIE, Count, Leaf, Proposal, Score, per_row

MOST = 2**19  # forwards after the last mask


@pytree
class Edit(PolicyBase):
    """Commit above `tau`, overwrite above `edit`, and go on until a forward changes nothing.

    With `post` 0 a block is left with its last mask, as under `threshold`, and what was committed may be overwritten
    while masks are left.

    Attributes:
        tau: probability that a commit must exceed.
        edit: probability that a token must exceed to overwrite another.
        post: the most forwards that a block has once it has no mask.
    """

    tau: Leaf = number(default=0.7, low=0.0, high=1.0)
    edit: Leaf = number(default=0.5, low=0.0, high=1.0)
    post: Count = number(default=16, low=0, high=MOST, whole=True)

    revises = True

    def budget(self, rows: int, window: int) -> Int[Array, " B"]:
        """A forward commits one mask at least, and no mask comes back."""
        return window + jnp.broadcast_to(jnp.asarray(self.post), (rows,))

    def init(self, rows: int, window: int) -> Int[Array, " B"]:
        """How many forwards of the block found no mask."""
        del window
        return jnp.zeros((rows,), jnp.int32)

    def select(self, state: Int[Array, " B"], score: Score, key: Key[Array, " B"]) -> tuple[Proposal, Int[Array, " B"]]:
        del key
        full = ~jnp.any(score.eligible, axis=1)
        done = jnp.where(score.block_step == 0, 0, state) + full.astype(jnp.int32)
        slack, edit_slack = score.prob - per_row(self.tau), score.prob - per_row(self.edit)
        sure = (slack > 0.0) & score.eligible
        commit, tie = with_best(sure, score.log_odds, score.eligible)
        differs = score.editable & (score.token != score.tokens)
        edit = differs & (edit_slack > 0.0)
        close = jnp.where(score.eligible, jnp.abs(PER_NAT * slack), jnp.inf) < NEAR_TIE
        close |= differs & (jnp.abs(PER_NAT * edit_slack) < NEAR_TIE)
        close |= score.editable & (score.gap < NEAR_TIE)
        changed = jnp.any(commit | edit, axis=1)
        left = jnp.any(score.eligible & ~commit, axis=1)
        proposal = Proposal(
            commit=commit,
            accepted=sure,
            close=close | tie,
            priority=score.log_odds,
            token=score.token,
            remask=jnp.zeros_like(commit),
            edit=edit,
            hold=changed & ~left & (done < jnp.asarray(self.post)),
        )
        return proposal, done
