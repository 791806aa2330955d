"""Passes without masks at the end of a block: the model sees all that the block has committed, and overwrites what it
puts another token at.

For a model that was trained to doubt visible tokens: by replaced tokens beside masks (MDiff4STR, arXiv 2512.01422), or
by its own mistakes (noise `mistakes`). One that was trained on masks alone has never learned what a visible position
says of its own token.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jaxdiff.policies.base import PER_NAT, PolicyBase, as_committed
from jaxdiff.protocols import Model, Policy
from jaxdiff.pytree import InputError, number, pytree
from jaxdiff.types import NEAR_TIE, Count, Leaf, Params, PartState, Proposal, Score, per_row

MOST = 2**19  # passes after the last mask


@pytree
class Revise(PolicyBase):
    """Commit as another policy does; a block without masks has up to `passes` further forwards, each of which
    overwrites every token where the candidate is another and more probable than `tau`. One that overwrites nothing is
    the block's last.

    Attributes:
        passes: the most forwards that a block has once it has no mask; 0: none. Even then nothing of a block is settled
            before it is full: under a stopper a row ends with its block, not with its end-of-text, the same tokens in
            more forwards.
        tau: probability that a token must exceed to overwrite another.
        sure: a block is looked at again only if one of its commits was less probable than this; above 1 every block is.
    """

    policy: Policy
    passes: Count = number(default=1, low=0, high=MOST, whole=True)
    tau: Leaf = number(default=0.9, low=0.0, high=1.0)
    sure: Leaf = number(default=0.9, low=0.0, high=2.0)

    revises = True

    def __post_init__(self) -> None:
        if self.policy.revises or self.policy.waits:
            raise InputError(
                "policy revise: found a policy that takes commits back or waits itself, expected one that does not"
            )

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        return self.policy.needs

    def check(self, model: Model, params: Params) -> None:
        self.policy.check(model, params)

    def budget(self, rows: int, window: int) -> Int[Array, " B"]:
        """A forward commits one mask at least, and no mask comes back."""
        return window + jnp.broadcast_to(jnp.asarray(self.passes), (rows,))

    def init(self, rows: int, window: int) -> tuple[Int[Array, " B"], Bool[Array, " B"], PartState]:
        """How many forwards of the block found no mask, and whether one of its commits was not `sure`."""
        zero = jnp.zeros((rows,), jnp.int32)
        return zero, zero > 0, self.policy.init(rows, window)

    def rewrite(self, score: Score) -> tuple[Int[Array, "B W"], Float[Array, "B W"]]:
        """What a token is overwritten with, and how far that lies above `tau`: above 0 it is, where it is another."""
        return score.token, score.prob - per_row(self.tau)

    def select(
        self, state: tuple[Int[Array, " B"], Bool[Array, " B"], PartState], score: Score, key: Key[Array, " B"]
    ) -> tuple[Proposal, tuple[Int[Array, " B"], Bool[Array, " B"], PartState]]:
        proposal, own = self.policy.select(state[2], score, key)
        commit, tie = as_committed(proposal, score)
        new, passes = score.block_step == 0, jnp.asarray(self.passes)
        full = ~jnp.any(score.eligible, axis=1)
        left = jnp.any(score.eligible & ~commit, axis=1)
        done = jnp.where(new, 0, state[0]) + full.astype(jnp.int32)

        doubt = score.prob - per_row(self.sure)
        doubted = jnp.where(new, False, state[1]) | jnp.any(commit & (doubt < 0.0), axis=1)

        token, slack = self.rewrite(score)
        differs = score.editable & full[:, None] & (token != score.tokens)
        edit = differs & (slack > 0.0)
        again = jnp.where(full, jnp.any(edit, axis=1), doubted)
        close = (commit & (jnp.abs(PER_NAT * doubt) < NEAR_TIE)) | (differs & (jnp.abs(PER_NAT * slack) < NEAR_TIE))
        close |= score.editable & full[:, None] & (score.gap < NEAR_TIE)
        decided = dataclasses.replace(
            proposal,
            commit=commit,
            close=proposal.close | tie | close,
            token=jnp.where(score.eligible, proposal.token, token),
            edit=edit,
            hold=again & ~left & (done < passes),
        )
        return decided, (done, doubted, own)


def revise(policy: Policy, **numbers: Leaf | Count) -> Revise:
    return Revise(policy, **numbers)  # type: ignore[arg-type]
