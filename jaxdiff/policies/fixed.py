"""A fixed number of steps: the standard decode of LLaDA and Dream."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key

from jaxdiff.policies.base import PolicyBase, propose
from jaxdiff.policies.order import ORDERS, gumbel, ranks
from jaxdiff.pytree import InputError, choice, number, pytree
from jaxdiff.types import UNLIMITED, Count, Leaf, Proposal, Score

ONE_A_STEP = UNLIMITED  # more steps than any block has positions: every step commits one


@pytree
class Fixed(PolicyBase):
    """Commit a quota of each step, best first: a block's n masked positions are spread evenly over the steps, the first
    n % steps forwards taking one more.

    Source: LLaDA `generate.py`.

    Attributes:
        steps: forwards for each block; the default commits one token a step.
        order: who goes first: `confidence` (LLaDA's low_confidence), `margin`, `entropy`, `random`, or `left`, the
            leftmost.
        alg_temp: draw the positions, without replacement, from softmax(order's score / alg_temp); None or 0 takes the
            best (Dream's `alg_temp`; the score is the probability, the margin or the negative entropy).
    """

    steps: Count = number(default=ONE_A_STEP, low=1, high=ONE_A_STEP, whole=True)
    order: str = choice(ORDERS, default="confidence")
    alg_temp: Leaf | None = number(default=None, low=0.0, high=1e6)

    def __post_init__(self) -> None:
        if self.alg_temp is not None and ORDERS[self.order].value is None:
            raise InputError(f"alg_temp: found order={self.order}, which has no score; leave one of the two out")

    @property
    def blind(self) -> bool:  # type: ignore[override]
        return ORDERS[self.order].blind

    def init(self, rows: int, window: int) -> Int[Array, " B"]:
        """The number of masked positions at the start of each row's block."""
        del window
        return jnp.zeros((rows,), jnp.int32)

    def select(self, state: Int[Array, " B"], score: Score, key: Key[Array, " B"]) -> tuple[Proposal, Int[Array, " B"]]:
        left = jnp.sum(score.eligible, axis=1, dtype=jnp.int32)
        at_start = jnp.where(score.block_step == 0, left, state)
        order = ORDERS[self.order]
        priority = order.priority(score, key)
        if self.alg_temp is not None and order.value is not None:
            temperature = jnp.broadcast_to(jnp.asarray(self.alg_temp), score.start.shape)[:, None]
            drawn = order.value(score) / jnp.maximum(temperature, 1e-30) + gumbel(key, score.positions)
            priority = jnp.where(temperature > 0.0, drawn, priority)  # the k highest of these are k draws
        quota = self.quota(left, at_start, score)
        chosen = ranks(priority, score.eligible) < quota[:, None]
        # A quota vouches for nothing, and compares with nothing.
        return propose(score, chosen, priority, accepted=jnp.zeros_like(chosen)), at_start

    def quota(self, left: Int[Array, " B"], at_start: Int[Array, " B"], score: Score) -> Int[Array, " B"]:
        """How many of the `left` masked positions this step commits; `at_start` were masked when the block began."""
        del left
        steps = jnp.asarray(self.steps)
        return at_start // steps + (score.block_step < at_start % steps).astype(jnp.int32)


@pytree
class FixedDream(Fixed):
    """Dream's schedule: floor(masked * (1 - s/t)) a step, with t falling linearly from 1 to 0.001, and all that is left
    in the last one. An early step may take none, and `steps` bounds their number.

    Source: HKUNLP/Dream `generation_utils.py`; attributes as in `Fixed`, but `steps` must be given.
    """

    waits = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.steps, jax.core.Tracer) and np.any(np.asarray(self.steps) >= ONE_A_STEP):
            raise InputError("schedule=dream: the schedule needs its number of steps; set --steps or steps=")

    def budget(self, rows: int, window: int) -> Int[Array, " B"]:
        del window
        return jnp.broadcast_to(jnp.asarray(self.steps), (rows,))

    def quota(self, left: Int[Array, " B"], at_start: Int[Array, " B"], score: Score) -> Int[Array, " B"]:
        del at_start
        steps = jnp.broadcast_to(jnp.asarray(self.steps), left.shape)

        def time(index: Int[Array, " B"]) -> Array:
            return 1.0 - index.astype(jnp.float32) * (1.0 - 1e-3) / steps.astype(jnp.float32)

        share = 1.0 - time(score.block_step + 1) / time(score.block_step)
        floor = jnp.floor(left.astype(jnp.float32) * share).astype(jnp.int32)
        return jnp.where(score.block_step + 1 >= steps, left, floor)
