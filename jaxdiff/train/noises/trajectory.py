"""Masks as a teacher's decode left them."""

from __future__ import annotations

from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxdiff.pytree import number, pytree
from jaxdiff.train.data import NEVER_WRITTEN, Batch
from jaxdiff.train.network import Network
from jaxdiff.train.noises.base import MOST, TRAJECTORY, NoiseBase, View, between, halves, masked, one_block, rank_of
from jaxdiff.types import Count, Leaf


@pytree
class Trajectory(NoiseBase):
    """As `complement`, but the masks of the active block are those that the teacher's decode committed last.

    Both the block and the share grow over the run. Source: hao-ai-lab/d3LLM, where a stored state of a decode is looked
    up by its number. What differs on purpose: masked are exactly the share of the block's own tokens that the teacher
    wrote last (of one forward, the rightmost), while a state's number gives one mask more, and a share that is only
    near where the training's blocks do not line up with the teacher's.

    Attributes:
        window: tokens of a block at the run's beginning; `grown`: at its end.
        low, high: the share of masks is drawn evenly from low to high at the beginning, and is high at the end.
    """

    window: Count = number(default=16, low=1, high=MOST, whole=True)
    grown: Count = number(default=32, low=1, high=MOST, whole=True)
    low: Leaf = number(default=0.0, low=0.0, high=1.0)
    high: Leaf = number(default=0.8, low=0.0, high=1.0)

    needs: ClassVar[frozenset[str]] = frozenset({TRAJECTORY})

    def views(self, key: Key[Array, ""], batch: Batch, network: Network, done: Float[Array, ""]) -> tuple[View, ...]:
        assert batch.order is not None
        share_key, block_key = jax.random.split(key)
        window, grown = jnp.asarray(self.window), jnp.asarray(self.grown)
        block = jnp.round(window + (grown - window) * done).astype(jnp.int32)
        active, later = one_block(block_key, batch, block)
        low, high = jnp.asarray(self.low), jnp.asarray(self.high)
        share = between(share_key, low + (high - low) * done, high, active.shape[0])
        column = jnp.broadcast_to(jnp.arange(active.shape[1])[None], active.shape)
        written_last = -rank_of(jnp.lexsort((column, batch.order), axis=1)).astype(jnp.float32)
        return halves(batch, active, later, written_last, share, network)


@pytree
class States(NoiseBase):
    """The teacher's canvas before one of its forwards, drawn evenly: masked is what that forward or a later one wrote.

    What lies behind the teacher's end, which it never wrote, is always masked. All masks are there to learn: an
    objective such as `near_far` tells them apart by when they were written. Source: BHmingyang/TAD `train_llada.py`.
    """

    needs: ClassVar[frozenset[str]] = frozenset({TRAJECTORY})
    follows: ClassVar[bool] = True

    def views(self, key: Key[Array, ""], batch: Batch, network: Network, done: Float[Array, ""]) -> tuple[View, ...]:
        del done
        assert batch.order is not None
        written = batch.answers & (batch.order < NEVER_WRITTEN)
        forwards = 1 + jnp.max(jnp.where(written, batch.order, 0), axis=1)
        at = jnp.floor(jax.random.uniform(key, forwards.shape) * forwards).astype(jnp.int32)
        masks = batch.answers & (batch.order >= at[:, None])
        return (View(masked(batch, masks, network), masks, at),)
