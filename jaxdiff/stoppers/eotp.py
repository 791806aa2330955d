"""End-of-text prediction (Learn2PD): move the end left to where an end-of-text is foreseen, before it is committed.

The kept position may still be masked and is decoded later; what lies past the end is attended to by nobody, and passes
run on a canvas that was cut. Source: ims-kdks/Learning-to-Parallel-Decoding `generate_l2p_eot`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jaxdiff.pytree import choice, number, pytree
from jaxdiff.stoppers.eos import Eos
from jaxdiff.types import Count, Leaf, PartState, Progress, is_text_end, per_row


class _Cuts:
    """What the three have in common."""

    wants_tail = cuts = True
    hides = False

    def init(self, rows: int) -> PartState:
        del rows
        return ()


@pytree
class OfficialEotp(_Cuts):
    """`official`: the leftmost end-of-text that the policy itself accepts in the block, else the most confident
    candidate of end-of-text anywhere on the canvas, however unsure.

    What was cut off a block is shown to the policy with probability 0.

    Attributes:
        ties: which candidate is the most confident: `first`, as published, takes the leftmost of those whose float32
            probability is highest (at the first forward of a long canvas some 200 have probability 1); `log_odds`, our
            own, tells them apart.
    """

    ties: str = choice(("first", "log_odds"), default="first")

    hides = True

    def update(self, state: PartState, progress: Progress) -> tuple[Int[Array, " B"], PartState]:
        assert progress.tail is not None
        ends, log_odds = progress.tail.ends, progress.tail.log_odds
        rank = jnp.where(ends, log_odds if self.ties == "log_odds" else jax.nn.sigmoid(log_odds), -jnp.inf)
        return _published(progress, jnp.argmax(rank, axis=1).astype(jnp.int32), jnp.any(ends, axis=1)), state


@pytree
class BlockEotp(_Cuts):
    """`block`: the same rule with the block alone in place of the canvas, as the published cached loops have it; the
    surest candidate is that of the highest log-odds, and nothing is hidden from the policy.
    """

    wants_tail = False

    def update(self, state: PartState, progress: Progress) -> tuple[Int[Array, " B"], PartState]:
        score, ends = progress.score, _ends_in_block(progress)
        surest = jnp.argmax(jnp.where(ends, score.log_odds, -jnp.inf), axis=1).astype(jnp.int32) + score.start
        return _published(progress, surest, jnp.any(ends, axis=1)), state


@pytree
class SafeEotp(_Cuts):
    """`safe`, our own: `Eos`, and a canvas that is cut behind the first `keep` positions in a row that are all foreseen
    as end-of-text with probability `tau`, or hold it.

    What is foreseen beyond them does not count: of a long canvas some stray position always is unsure. What was cut off
    is no longer attended to, so that a text may still change; the more is kept, the fewer do (`experiments/ends.py`).
    """

    tau: Leaf = number(default=0.9, low=0.0, high=1.0)
    keep: Count = number(default=128, low=1, high=2**20, whole=True)

    def update(self, state: PartState, progress: Progress) -> tuple[Int[Array, " B"], PartState]:
        assert progress.tail is not None
        column = jnp.arange(progress.canvas.shape[1], dtype=jnp.int32)[None]
        tau = per_row(self.tau)
        sure = progress.tail.ends & (progress.tail.log_odds >= jnp.log(tau) - jnp.log1p(-tau))
        foreseen = (sure | is_text_end(progress.canvas, progress)) & progress.generated
        other = jax.lax.cummax(jnp.where(foreseen & (column < progress.end[:, None]), -1, column), axis=1)
        enough = column - other >= jnp.reshape(jnp.asarray(self.keep), (-1, 1))
        behind = jnp.where(jnp.any(enough, axis=1), jnp.argmax(enough, axis=1).astype(jnp.int32) + 1, progress.end)
        ended, _ = Eos().update((), progress)
        return jnp.minimum(ended, behind), state


def _ends_in_block(progress: Progress) -> Bool[Array, "B W"]:
    return is_text_end(progress.score.token, progress) & progress.score.eligible


def _published(progress: Progress, surest: Int[Array, " B"], found: Bool[Array, " B"]) -> Int[Array, " B"]:
    """The end behind the leftmost end-of-text that the policy accepts, else behind the surest one, if one was found."""
    at = progress.score.start[:, None] + jnp.arange(progress.accepted.shape[1], dtype=jnp.int32)[None]
    vouched = _ends_in_block(progress) & progress.accepted
    leftmost = jnp.min(jnp.where(vouched, at, progress.end[:, None]), axis=1)
    other = jnp.where(found, surest + 1, progress.end)
    return jnp.where(jnp.any(vouched, axis=1), leftmost + 1, other)
