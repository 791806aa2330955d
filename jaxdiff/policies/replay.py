"""The replay that Learn2PD learns from: a greedy decode towards a known answer, and what was seen on the way.

Source: ims-kdks/Learning-to-Parallel-Decoding `generate_training_data.py`. In each forward every position whose
candidate is the reference's token is committed; where the block's candidates did not change since its last forward, the
reference is filled in and the block is left. Every forward is recorded, that last one too.

A filter does not dare all that this replay commits, and meets canvases that it never saw. With `tau`, of our own, the
replay commits only what is final and as sure as that: the same answer, met on the path of a more careful decode.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jaxdiff.policies.filters import evidence_of
from jaxdiff.policies.order import reference_block
from jaxdiff.types import InputError, Leaf, Proposal, Score, each_row, number, per_row, pytree, static


@pytree
class Recording:
    """What a replay saw, block by block (Q of them) and forward by forward (at most S = W + 1 in a block).

    `final` says whether the candidate was the reference's token; rows of `forwards` or more are empty.
    """

    log_odds: Float[Array, "B Q S W"]
    runner_up: Float[Array, "B Q S W"]
    entropy: Float[Array, "B Q S W"]
    masked: Bool[Array, "B Q S W"]
    final: Bool[Array, "B Q S W"]
    hidden: Float[Array, "B Q S W D"]
    forwards: Int[Array, "B Q"]
    previous: Int[Array, "B W"]  # the candidates of the row's last forward


@pytree
class Replay:
    """Decode towards `reference` (a canvas, as `Result.tokens`); the final state is a `Recording`.

    A forward commits what is final and has a probability of at least `tau`, or else the surest that is final. Where
    nothing is, the next one sees the same canvas, finds the same candidates, and fills the block: a block of W
    positions has at most W + 1 forwards.
    """

    reference: Int[Array, "B L"] | None = each_row(default=None)
    tau: Leaf = number(default=0.0, low=0.0, high=1.0)
    features: int = static(default=0)  # hidden ones to record: the model's D, or none

    waits = True

    @property
    def lacks_reference(self) -> bool:
        return self.reference is None

    def bind(self, reference: Int[Array, "B L"]) -> Replay:
        return dataclasses.replace(self, reference=reference) if self.lacks_reference else self

    def init(self, rows: int, window: int) -> Recording:
        """Raises InputError without a reference."""
        if self.reference is None:
            raise InputError("replay: found no reference, expected the canvas of a standard decode")
        blocks = -(-self.reference.shape[1] // window)  # as many as there may be: those of the prompt stay empty
        shape = (rows, blocks, window + 1, window)
        numbers, flags = jnp.zeros(shape), jnp.zeros(shape, bool)
        hidden = jnp.zeros((*shape, self.features))
        forwards, previous = jnp.zeros((rows, blocks), jnp.int32), jnp.full((rows, window), -1, jnp.int32)
        return Recording(numbers, numbers, numbers, flags, flags, hidden, forwards, previous)

    def select(self, state: Recording, score: Score, key: Key[Array, " B"]) -> tuple[Proposal, Recording]:
        del key
        wanted = reference_block("replay", self.reference, score)
        final = score.token == wanted
        fitting = final & score.eligible
        surest = jnp.max(jnp.where(fitting, score.log_odds, -jnp.inf), axis=1, keepdims=True)
        sure = (score.prob >= per_row(self.tau)) | (score.log_odds == surest)
        same = jnp.all(score.token == state.previous, axis=1, keepdims=True)
        stuck = same & (score.block_step > 0)[:, None] & ~jnp.any(fitting, axis=1, keepdims=True)
        commit = (fitting & sure) | (stuck & score.eligible)
        proposal = Proposal(
            commit=commit, accepted=commit, close=jnp.zeros_like(commit), priority=score.log_odds, token=wanted
        )
        return proposal, self._record(state, score, final)

    def _record(self, state: Recording, score: Score, final: Bool[Array, "B W"]) -> Recording:
        rows, window = final.shape
        row = jnp.arange(rows)
        blocks = state.forwards.shape[1]
        # Blocks are counted from the canvas' end: where the prompt ends does not matter.
        block = blocks - (score.canvas.shape[1] - score.start) // window
        at = (row, block, score.block_step)
        seen = evidence_of(score)
        return Recording(
            log_odds=state.log_odds.at[at].set(seen.log_odds),
            runner_up=state.runner_up.at[at].set(seen.runner_up),
            entropy=state.entropy.at[at].set(seen.entropy),
            masked=state.masked.at[at].set(seen.masked),
            final=state.final.at[at].set(final),
            hidden=state.hidden.at[at].set(seen.hidden[..., : self.features].astype(jnp.float32)),
            forwards=state.forwards.at[row, block].set(score.block_step + 1),
            previous=score.token,
        )
