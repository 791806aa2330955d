"""Which commits are wrong? A small head on the model's own features, as ELECTRA's detector of replaced tokens (arXiv
2003.10555), on what a decode has written itself: `Judge`, what it sees (`Standing`), and `Correct`, which takes back
what it doubts.

    Score, Memory -> Standing [B W] each -> inputs [B W F] -> MLP -> logit of "wrong" [B W]
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jaxdiff.leaves import fingerprint
from jaxdiff.policies.base import PER_NAT, PolicyBase, as_committed
from jaxdiff.policies.filters import CERTAIN, Layers, mlp, neighbourhood
from jaxdiff.protocols import Model, Policy
from jaxdiff.pytree import InputError, number, pytree, static
from jaxdiff.types import NEAR_TIE, Leaf, Params, PartState, Proposal, Score, per_row

PER_NEIGHBOUR, OWN = 7, 3  # inputs that a judge has of each position in reach, and of the position beside these


@pytree
class Memory:
    """What is remembered of a block from step to step, [B, W] each."""

    odds: Float[Array, "B W"]  # of the candidate, at the last forward that found the position masked
    step: Int[Array, "B W"]  # that forward, counted in the block; -1: none
    masked: Bool[Array, "B W"]  # at the last forward
    taken: Bool[Array, "B W"]  # was committed in this block, and taken back

    @classmethod
    def fresh(cls, rows: int, window: int) -> Memory:
        """Of a block that no forward has seen."""
        shape = (rows, window)
        none = jnp.zeros(shape, bool)
        return cls(jnp.full(shape, CERTAIN), jnp.full(shape, -1, jnp.int32), ~none, none)

    def at(self, score: Score) -> Memory:
        """The same after this forward; that of an earlier block is forgotten.

        What stands at a position was committed by the last forward that found it masked, whoever chose to commit it.
        """
        new, masked = (score.block_step == 0)[:, None], score.masked
        step = jnp.broadcast_to(score.block_step[:, None], masked.shape)
        return Memory(
            odds=jnp.where(masked, score.log_odds, jnp.where(new, CERTAIN, self.odds)),
            step=jnp.where(masked, step, jnp.where(new, -1, self.step)),
            masked=masked,
            taken=~new & (self.taken | (masked & ~self.masked)),
        )


@pytree
class Standing:
    """What a judge sees of a block; also what `Witness` records, so that fitting and decoding read the same."""

    odds: Float[Array, "B W"]  # log-odds of the candidate, at a visible position those of the forward that committed it
    standing: Float[Array, "B W"]  # log-probability of the token that stands there; NEVER for a mask
    log_prob: Float[Array, "B W"]  # of the candidate, now
    agrees: Bool[Array, "B W"]  # the candidate is what stands there
    masked: Bool[Array, "B W"]
    judged: Bool[Array, "B W"]  # committed by this decode in this block
    age: Int[Array, "B W"]  # forwards since the commit
    repeats: Bool[Array, "B W"]  # the same token stands in the block, committed before, or with it and further left
    block_step: Int[Array, " B"]
    hidden: Float[Array, "B W D"]


def standing_of(score: Score, memory: Memory) -> Standing:
    """`memory`: after this forward."""
    step, place, stands = memory.step, jnp.arange(score.masked.shape[1]), ~score.masked
    earlier = (step[:, None, :] < step[:, :, None]) | (
        (step[:, None, :] == step[:, :, None]) & (place[None, :] < place[:, None])[None]
    )
    same = (score.tokens[:, :, None] == score.tokens[:, None, :]) & stands[:, None, :]
    return Standing(
        odds=memory.odds,
        standing=score.standing,
        log_prob=score.log_prob,
        agrees=score.token == score.tokens,
        masked=score.masked,
        judged=score.editable,
        age=score.block_step[:, None] - memory.step,
        repeats=stands & jnp.any(same & earlier, axis=2),
        block_step=score.block_step,
        hidden=score.hidden,
    )


@pytree
class Judge:
    """An MLP that says of each committed token whether it is wrong, for any block length.

    Inputs of a position, of itself and of `reach` neighbours on each side (zeros, and a mark, beyond the block): the
    log-odds that it was committed with, the log-probability now of the token that stands there and of the candidate,
    whether these are the same, masked or not, committed in this block or not; and its own age, the share of the block
    that is masked, the block's step, whether it repeats a token that stands in the block, and the model's hidden
    features.

    Attributes:
        features: how many hidden ones it reads: the model's D, or none.
        repeats: 1, or 0 for a judge that is not told of repeated tokens.
        fitted_to: the fingerprint of the model whose commits it was fitted to (`leaves.fingerprint`); None: any.
    """

    layers: Layers
    reach: int = static(default=3)
    features: int = static(default=0)
    repeats: int = static(default=0)
    fitted_to: str | None = static(default=None)

    @property
    def width(self) -> int:
        """Inputs of a position."""
        return PER_NEIGHBOUR * (2 * self.reach + 1) + OWN + self.repeats + self.features

    def check(self, model: Model, params: Params) -> None:
        """Raises InputError for a model of another width, or with other weights, than it was fitted to."""
        if self.features not in (0, model.config.d_model):
            raise InputError(
                f"judge: found one that reads {self.features} hidden features, but this model has "
                f"{model.config.d_model}; take the judge of this model, or fit one (jaxdiff fit --kind judge)"
            )
        here = None if self.fitted_to is None else fingerprint(params)
        if here is not None and self.fitted_to != here:
            raise InputError(
                f"judge: found one of the weights {self.fitted_to}, but these are {here}; take the judge of this "
                "model, or fit one (jaxdiff fit --kind judge)"
            )

    def inputs(self, seen: Standing) -> Float[Array, "B W F"]:
        masked = seen.masked.astype(jnp.float32)
        numbers = [jnp.clip(x, -CERTAIN, CERTAIN) / 8.0 for x in (seen.odds, seen.standing, seen.log_prob)]
        flags = [flag.astype(jnp.float32) for flag in (seen.agrees, seen.masked, seen.judged)]
        share = jnp.broadcast_to(jnp.mean(masked, axis=1, keepdims=True), masked.shape)
        steps = jnp.broadcast_to(seen.block_step[:, None], masked.shape)
        age, step = (jnp.log1p(jnp.maximum(x, 0).astype(jnp.float32)) for x in (seen.age, steps))
        own = jnp.stack([age, share, step, *[seen.repeats.astype(jnp.float32)][: self.repeats]], axis=-1)
        around = neighbourhood([*numbers, *flags], self.reach)
        return jnp.concatenate([around, own, seen.hidden[..., : self.features].astype(jnp.float32)], axis=-1)

    def __call__(self, seen: Standing) -> Float[Array, "B W"]:
        """Logits of "what stands there is wrong"."""
        return mlp(self.layers, self.inputs(seen))[..., 0]


@pytree
class Correct(PolicyBase):
    """Commit as another policy does, and mask again what a judge takes for wrong; each position once in a block.

    A judge sees a token from the forward after its commit on. Where one of the last masks of a block is committed with
    a probability under `sure`, a further forward looks at them; where all are surer the block is left.

    Attributes:
        tau: what the judge's probability of "wrong" must exceed.
        sure: 0 never looks again, above 1 always.
    """

    policy: Policy
    judge: Judge
    tau: Leaf = number(default=0.5, low=0.0, high=1.0)
    sure: Leaf = number(default=0.9, low=0.0, high=2.0)

    revises = True

    def __post_init__(self) -> None:
        if self.policy.revises or self.policy.waits:
            raise InputError(
                "policy correct: found a policy that takes commits back or waits itself, expected one that does not"
            )

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        return self.policy.needs

    def check(self, model: Model, params: Params) -> None:
        self.policy.check(model, params)
        self.judge.check(model, params)

    def budget(self, rows: int, window: int) -> Int[Array, " B"]:
        """Each position is committed twice at most, and after a forward that had no mask to commit one comes back."""
        return jnp.full((rows,), 3 * window + 1, jnp.int32)

    def init(self, rows: int, window: int) -> tuple[Memory, PartState]:
        return Memory.fresh(rows, window), self.policy.init(rows, window)

    def slack(self, score: Score, memory: Memory, key: Key[Array, " B"]) -> Float[Array, "B W"]:
        """How far what is said of a commit lies above `tau`: above 0 it is taken back. `memory`: after this forward."""
        del key
        tau = per_row(self.tau)
        return self.judge(standing_of(score, memory)) - (jnp.log(tau) - jnp.log1p(-tau))

    def select(
        self, state: tuple[Memory, PartState], score: Score, key: Key[Array, " B"]
    ) -> tuple[Proposal, tuple[Memory, PartState]]:
        memory, (proposal, own) = state[0].at(score), self.policy.select(state[1], score, key)
        slack = self.slack(score, memory, key)
        open_ = score.editable & ~memory.taken
        commit, tie = as_committed(proposal, score)
        doubt = score.prob - per_row(self.sure)
        last = commit & ~jnp.any(score.eligible & ~commit, axis=1, keepdims=True)
        close = (open_ & (jnp.abs(slack) < NEAR_TIE)) | (last & (jnp.abs(PER_NAT * doubt) < NEAR_TIE))
        decided = dataclasses.replace(
            proposal,
            commit=commit,
            close=proposal.close | close | tie,
            remask=open_ & (slack > 0.0),
            hold=jnp.any(last & (doubt < 0.0), axis=1),
        )
        return decided, (memory, own)


def correct(policy: Policy, judge: Judge, **numbers: Leaf) -> Correct:
    return Correct(policy, judge, **numbers)
