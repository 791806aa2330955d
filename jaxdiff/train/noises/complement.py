"""A share of a block masked, and in a second view the rest of it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxdiff.pytree import number, pytree
from jaxdiff.train.data import Batch
from jaxdiff.train.network import Network
from jaxdiff.train.noises.base import MOST, NoiseBase, View, between, halves, one_block
from jaxdiff.types import Count, Leaf


@pytree
class Complement(NoiseBase):
    """One block is active, before it clean, after it masked; a share of it is masked, and in a second view the rest.

    Source: czg1225/dParallel `LLaDA/llada_train.py`, where tokens are masked with probability 0.5 each. What differs on
    purpose: the count is exact, so that no view is without a mask by chance; the blocks are those of the answer through
    its first end-of-text, while there as many are drawn that hold padding alone. A packed row is one block.

    Attributes:
        block: in tokens.
        low, high: the share that the first view masks, drawn evenly between the two for each row. With all of it, as a
            decode sees a block first, the second view has nothing to learn.
    """

    block: Count = number(default=32, low=1, high=MOST, whole=True)
    low: Leaf = number(default=0.5, low=0.0, high=1.0)
    high: Leaf = number(default=0.5, low=0.0, high=1.0)

    def views(self, key: Key[Array, ""], batch: Batch, network: Network, done: Float[Array, ""]) -> tuple[View, ...]:
        del done
        share_key, mask_key, block_key = jax.random.split(key, 3)
        active, later = one_block(block_key, batch, jnp.asarray(self.block))
        share = between(share_key, self.low, self.high, active.shape[0])
        return halves(batch, active, later, jax.random.uniform(mask_key, active.shape), share, network)
