"""The replay that Learn2PD learns from: a greedy decode towards a known answer, and what was seen on the way.

Source: ims-kdks/Learning-to-Parallel-Decoding `generate_training_data.py`. In each forward every position whose
candidate is the reference's token is committed; where the block's candidates did not change since its last forward, the
reference is filled in and the block is left. Every forward is recorded, that last one too.

A filter does not dare all that this replay commits, and meets canvases that it never saw. With `tau`, of our own, the
replay commits only what is final and as sure as that: the same answer, met on the path of a more careful decode.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jaxdiff.policies.base import PolicyBase, propose
from jaxdiff.policies.filters import evidence_of
from jaxdiff.pytree import number, pytree, static
from jaxdiff.types import REFERENCE, Leaf, Proposal, Score, per_row


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
class Replay(PolicyBase):
    """Decode towards the reference, `decode(reference=)`; the final state is a `Recording`.

    A forward commits what is final and has a probability of at least `tau`, or else the surest that is final. Where
    nothing is, the next one sees the same canvas, finds the same candidates, and fills the block: a block of W
    positions has at most W + 1 forwards.

    Attributes:
        blocks: how many are recorded, counted from the canvas' end, so that it does not matter where the prompt ends.
        features: hidden ones to record: the model's D, or none.
    """

    blocks: int = static()
    tau: Leaf = number(default=0.0, low=0.0, high=1.0)
    features: int = static(default=0)

    waits = True
    needs = frozenset({REFERENCE})

    def budget(self, rows: int, window: int) -> Int[Array, " B"]:
        return jnp.full((rows,), window + 1, jnp.int32)

    def init(self, rows: int, window: int) -> Recording:
        shape = (rows, self.blocks, window + 1, window)
        numbers, flags = jnp.zeros(shape), jnp.zeros(shape, bool)
        hidden = jnp.zeros((*shape, self.features))
        forwards, previous = jnp.zeros(shape[:2], jnp.int32), jnp.full((rows, window), -1, jnp.int32)
        return Recording(numbers, numbers, numbers, flags, flags, hidden, forwards, previous)

    def select(self, state: Recording, score: Score, key: Key[Array, " B"]) -> tuple[Proposal, Recording]:
        del key
        assert score.reference is not None
        final = score.token == score.reference
        fitting = final & score.eligible
        surest = jnp.max(jnp.where(fitting, score.log_odds, -jnp.inf), axis=1, keepdims=True)
        sure = (score.prob >= per_row(self.tau)) | (score.log_odds == surest)
        same = jnp.all(score.token == state.previous, axis=1, keepdims=True)
        stuck = same & (score.block_step > 0)[:, None] & ~jnp.any(fitting, axis=1, keepdims=True)
        commit = (fitting & sure) | stuck
        return propose(score, commit, score.log_odds, token=score.reference), self._record(state, score, final)

    def _record(self, state: Recording, score: Score, final: Bool[Array, "B W"]) -> Recording:
        rows, window = final.shape
        row = jnp.arange(rows)
        block = self.blocks - (score.canvas.shape[1] - score.start) // window
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
