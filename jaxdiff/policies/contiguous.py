"""Commit the longest run of sure positions that touches what is known (Lexical Unit Decoding, arXiv 2405.15208).

Lexical Unit Decoding is for autoregressive models that were trained to emit several tokens at once: of these the
longest contiguous run above a threshold is kept. Here the rule is that of a denoiser's block: a lexical unit, next to
what stands, and not scattered tokens with gaps between them.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Key

from jaxdiff.policies.base import PER_NAT, PolicyBase, propose
from jaxdiff.pytree import choice, number, pytree
from jaxdiff.types import NEVER, Leaf, PartState, Proposal, Score, per_row

SIDES = ("left", "both")


@pytree
class Contiguous(PolicyBase):
    """Commit the longest run of neighbours of probability at least `tau` that begins right of what is known, or, with
    `sides=both`, ends left of it; where several are as long, the leftmost. Where none is sure, the loop forces the most
    confident one that touches what is known.

    Known is what stands in the block, and what lies left of it.

    Attributes:
        tau: probability that each of the run must have.
        sides: where a run may touch what is known.
    """

    tau: Leaf = number(default=0.9, low=0.0, high=1.0)
    sides: str = choice(SIDES, default="left")

    def select(self, state: PartState, score: Score, key: Key[Array, " B"]) -> tuple[Proposal, PartState]:
        del key
        slack = score.prob - per_row(self.tau)
        sure = score.eligible & (slack >= 0.0)
        column = jnp.arange(sure.shape[1], dtype=jnp.int32)[None]
        first = jax.lax.cummax(jnp.where(sure, 0, column + 1), axis=1)  # of the run that a sure position is in
        last = jax.lax.cummin(jnp.where(sure, sure.shape[1], column) - 1, axis=1, reverse=True)
        touches = self._touches(score)
        at_first, at_last = (
            jnp.take_along_axis(side, jnp.clip(end, 0, sure.shape[1] - 1), axis=1)
            for side, end in zip(touches, (first, last), strict=True)
        )
        length = jnp.where(sure & (at_first | at_last), last - first + 1, 0)
        best = jnp.take_along_axis(first, jnp.argmax(length, axis=1, keepdims=True), axis=1)
        priority = jnp.where(touches[0] | touches[1], score.log_odds, NEVER)
        return propose(score, (length > 0) & (first == best), priority, PER_NAT * slack), state

    def _touches(self, score: Score) -> tuple[Bool[Array, "B W"], Bool[Array, "B W"]]:
        """Which positions have what is known on their left, and, where that counts, on their right."""
        known = ~score.masked
        left = jnp.pad(known[:, :-1], ((0, 0), (1, 0)), constant_values=True)
        right = jnp.pad(known[:, 1:], ((0, 0), (0, 1)))
        return left, right if self.sides == "both" else jnp.zeros_like(right)
