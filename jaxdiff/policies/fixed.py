"""A fixed number of steps: the standard decode of LLaDA and Dream."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Key

from jaxdiff.policies.order import ORDERS, gumbel, priority_of, ranks, uniform, value_of
from jaxdiff.types import Count, InputError, Leaf, Proposal, Score, number, pytree, static

ONE_A_STEP = 2**20  # more steps than any block has positions: every step commits one


@pytree
class Fixed:
    """Commit a quota of each step, best first.

    Source: LLaDA `generate.py` (uniform), Dream `generation_utils.py` (dream).

    Attributes:
        steps: forwards for each block; the default commits one token a step.
        order: who goes first: `confidence` (LLaDA's low_confidence), `margin`, `entropy` or `random`.
        schedule: `uniform` spreads a block's n masked positions evenly, the first n % steps forwards taking one
            more. `dream` takes floor(masked * (1 - s/t)) with t falling linearly from 1 to 0.001, all that is
            left in the last forward; an early forward may take none, and `steps` bounds their number.
        alg_temp: draw the positions, without replacement, from softmax(order's score / alg_temp); None or 0 takes the
            best (Dream's `alg_temp`; the score is the probability, the margin or the negative entropy).
    """

    steps: Count = number(default=ONE_A_STEP, low=1, high=ONE_A_STEP, whole=True)
    order: str = static(default="confidence")
    schedule: str = static(default="uniform")
    alg_temp: Leaf | None = number(default=None, low=0.0, high=1e6)

    @property
    def waits(self) -> bool:
        return self.schedule == "dream"

    def init(self, rows: int, window: int) -> Int[Array, " B"]:
        """The number of masked positions at the start of each row's block."""
        del window
        for name, value, known in (
            ("order", self.order, ORDERS),
            ("schedule", self.schedule, ("uniform", "dream")),
        ):
            if value not in known:
                raise InputError(f"fixed {name}: found {value!r}, expected one of {', '.join(known)}")
        if self.waits and not isinstance(self.steps, jax.core.Tracer) and np.any(np.asarray(self.steps) >= ONE_A_STEP):
            raise InputError("fixed schedule=dream: the schedule needs its number of steps; set --steps or steps=")
        if self.alg_temp is not None and self.order == "random":
            raise InputError("fixed alg_temp: found order=random, which has no score; leave one of the two out")
        return jnp.zeros((rows,), jnp.int32)

    def select(self, state: Int[Array, " B"], score: Score, key: Key[Array, " B"]) -> tuple[Proposal, Int[Array, " B"]]:
        left = jnp.sum(score.eligible, axis=1, dtype=jnp.int32)
        at_start = jnp.where(score.block_step == 0, left, state)
        quota = self._uniform(at_start, score) if self.schedule == "uniform" else self._dream(left, score)
        columns = score.start[:, None] + jnp.arange(score.masked.shape[1], dtype=jnp.int32)[None]
        if self.order == "random":
            priority = uniform(key, columns - score.origin[:, None])
        else:
            priority = priority_of(score, self.order)
        if self.alg_temp is not None:
            heat = jnp.broadcast_to(jnp.asarray(self.alg_temp), score.start.shape)[:, None]
            noise = gumbel(key, columns - score.origin[:, None])
            drawn = value_of(score, self.order) / jnp.maximum(heat, 1e-30) + noise
            priority = jnp.where(heat > 0.0, drawn, priority)  # the k highest of these are k draws
        chosen: Bool[Array, "B W"] = (ranks(priority, score.eligible) < quota[:, None]) & score.eligible
        none = jnp.zeros_like(chosen)  # a quota vouches for nothing, and compares with nothing
        return Proposal(commit=chosen, accepted=none, close=none, priority=priority, token=score.token), at_start

    def _uniform(self, at_start: Int[Array, " B"], score: Score) -> Int[Array, " B"]:
        steps = jnp.asarray(self.steps)
        return at_start // steps + (score.block_step < at_start % steps).astype(jnp.int32)

    def _dream(self, left: Int[Array, " B"], score: Score) -> Int[Array, " B"]:
        steps = jnp.broadcast_to(jnp.asarray(self.steps), left.shape)

        def time(index: Int[Array, " B"]) -> Array:
            return 1.0 - index.astype(jnp.float32) * (1.0 - 1e-3) / steps.astype(jnp.float32)

        share = 1.0 - time(score.block_step + 1) / time(score.block_step)
        floor = jnp.floor(left.astype(jnp.float32) * share).astype(jnp.int32)
        return jnp.where(score.block_step + 1 >= steps, left, floor)
