"""Masks as semi-autoregressive decoding sees them, or anywhere in the answer."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxdiff.pytree import number, pytree
from jaxdiff.train.data import Batch
from jaxdiff.train.network import Network
from jaxdiff.train.noises.base import MOST, NoiseBase, View, block_start, is_packed, masked, ranks
from jaxdiff.types import Count, Leaf

AHEAD = 8  # how far a left-to-right decode looks: the tokens beyond wait for those before them


@pytree
class SemiAr(NoiseBase):
    """A share of the rows noised as semi-autoregressive decoding sees them, the others with uniform masks.

    One block of the answer is active (drawn evenly from those that hold the answer and its first end-of-text), what
    lies before it is clean, what lies after it is all masked and not learned; in it, or elsewhere in the whole answer,
    a share t of the tokens is masked. t is stratified over the batch: the same expectation as independent draws, with
    less variance. Source: dParallel (arXiv 2509.26488), with LLaDA's t.

    A packed row (`answer_lengths` 0) has no blocks: that share of them is cut at one of its answers' tokens, which is
    masked together with all that follows it.

    Attributes:
        share: of the rows; 0 is LLaDA's fine-tuning noise.
        in_order: of those, the share that is masked from the right: the last k tokens of the block, as when it is
            decoded left to right, as worked answers mostly are. The first AHEAD of them are learned.
        block: in tokens.
    """

    share: Leaf = number(default=1.0, low=0.0, high=1.0)
    in_order: Leaf = number(default=0.0, low=0.0, high=1.0)
    block: Count = number(default=32, low=1, high=MOST, whole=True)

    def views(self, key: Key[Array, ""], batch: Batch, network: Network, done: Float[Array, ""]) -> tuple[View, ...]:
        del done
        rows, length = batch.tokens.shape
        level_key, mask_key, block_key, kind_key, order_key = jax.random.split(key, 5)
        column = jnp.arange(length)[None]
        as_decoded = jax.random.uniform(kind_key, (rows, 1)) < jnp.asarray(self.share)
        packed = is_packed(batch)
        ordered = as_decoded & ~packed & (jax.random.uniform(order_key, (rows, 1)) < jnp.asarray(self.in_order))
        priority = jnp.where(batch.answers, jax.random.uniform(mask_key, (rows, length)), 2.0)  # lowest goes first

        block = jnp.asarray(self.block)
        first = block_start(block_key, batch, block)
        cut = jnp.argmin(priority, axis=1, keepdims=True)
        last = jnp.where(packed, cut, first + block - 1)
        active = batch.answers & (~as_decoded | ((column <= last) & (packed | (column >= first))))
        later = as_decoded & (column > last)

        level = (jax.random.uniform(level_key) + jnp.arange(rows) / rows) % 1.0
        count = jnp.clip(jnp.ceil(level * jnp.sum(active, axis=1)), 1).astype(jnp.int32)[:, None]
        rank = ranks(jnp.where(ordered, 1.0 - column / length, priority), active)
        drawn = active & (rank < count)
        looked_at = jnp.where(ordered, jnp.minimum(count, AHEAD), count)
        return (View(masked(batch, drawn | later, network), drawn & (rank >= count - looked_at)),)


@pytree
class Uniform(NoiseBase):
    """A share t ~ U(0, 1) of the answer's tokens is masked (LLaDA's fine-tuning, arXiv 2502.09992)."""

    def views(self, key: Key[Array, ""], batch: Batch, network: Network, done: Float[Array, ""]) -> tuple[View, ...]:
        return SemiAr(share=0.0).views(key, batch, network, done)
