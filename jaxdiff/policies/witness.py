"""What a judge learns from: another policy's decode, forward by forward."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Int, Key, Shaped

from jaxdiff.policies.base import PolicyBase
from jaxdiff.policies.judge import Memory, standing_of
from jaxdiff.protocols import Model, Policy
from jaxdiff.pytree import pytree, static
from jaxdiff.types import Params, PartState, Proposal, Score


@pytree
class Testimony:
    """What was seen, block by block (Q of them) and forward by forward (the first S of each)."""

    seen: dict[str, Shaped[Array, "B Q S ..."]]  # the fields of `Standing`, `tokens`, and `start`, the block's column
    forwards: Int[Array, "B Q"]  # at most S
    memory: Memory
    policy: PartState


@pytree
class Witness(PolicyBase):
    """Decode as another policy does, with a further forward for each block that looks at its last commits, and record
    each forward; the final state is a `Testimony`.

    Attributes:
        blocks: how many are recorded, counted from the canvas' end, so that it does not matter where the prompt ends.
        forwards: of a block that are recorded.
        features: hidden ones to record: the model's D, or none.
    """

    policy: Policy
    blocks: int = static()
    forwards: int = static(default=8)
    features: int = static(default=0)

    revises = True

    @property
    def waits(self) -> bool:  # type: ignore[override]
        return self.policy.waits

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        return self.policy.needs

    def check(self, model: Model, params: Params) -> None:
        self.policy.check(model, params)

    def budget(self, rows: int, window: int) -> Int[Array, " B"]:
        return self.policy.budget(rows, window) if self.policy.revises else jnp.full((rows,), window + 1, jnp.int32)

    def init(self, rows: int, window: int) -> Testimony:
        lead = (rows, self.blocks, self.forwards)
        numbers, flags, counts = (jnp.zeros((*lead, window), kind) for kind in (jnp.float32, bool, jnp.int32))
        seen = dict(
            odds=numbers,
            standing=numbers,
            log_prob=numbers,
            agrees=flags,
            masked=flags,
            judged=flags,
            age=counts,
            repeats=flags,
            tokens=counts,
            start=jnp.zeros(lead, jnp.int32),
            block_step=jnp.zeros(lead, jnp.int32),
            hidden=jnp.zeros((*lead, window, self.features)),
        )
        forwards = jnp.zeros(lead[:2], jnp.int32)
        return Testimony(seen, forwards, Memory.fresh(rows, window), self.policy.init(rows, window))

    def select(self, state: Testimony, score: Score, key: Key[Array, " B"]) -> tuple[Proposal, Testimony]:
        proposal, own = self.policy.select(state.policy, score, key)
        memory = state.memory.at(score)
        row = jnp.arange(score.start.shape[0])
        block = self.blocks - (score.canvas.shape[1] - score.start) // score.masked.shape[1]
        at = (row, block, score.block_step)  # behind the last that is recorded nothing is written
        now = standing_of(score, memory)
        now = dataclasses.replace(now, hidden=now.hidden[..., : self.features].astype(jnp.float32))
        values = vars(now) | {"tokens": score.tokens, "start": score.start}
        left = score.eligible & ~proposal.commit
        ending = jnp.any(score.eligible, axis=1) & ~jnp.any(left, axis=1)
        recorded = Testimony(
            seen={name: old.at[at].set(values[name], mode="drop") for name, old in state.seen.items()},
            forwards=state.forwards.at[row, block].set(jnp.minimum(score.block_step + 1, self.forwards)),
            memory=memory,
            policy=own,
        )
        return dataclasses.replace(proposal, hold=proposal.hold | ending), recorded
