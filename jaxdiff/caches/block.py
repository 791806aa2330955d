"""The cache of models that attend in blocks (LLaDA2, SDAR, Fast-dLLM v2)."""

from __future__ import annotations

from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jaxdiff.caches.base import CacheBase, last_block
from jaxdiff.pytree import pytree
from jaxdiff.types import Place


@pytree
class BlockCausal(CacheBase):
    """A block's keys and values are kept when it is done; the window is the block.

    A pass without commits stores the prompt's whole blocks, and one each finished block; after a row's last block there
    is none, nor after one whose last pass changed nothing, as of policies that take back or overwrite: what that pass
    wrote is what is kept. Source: JetAstra/SDAR `generate.py` (`store_kv`).

    Exactness: exact: nothing that is kept could see what changes later. The tokens are those of no cache; NFE is
    greater by the passes that store.
    """

    window: ClassVar[str] = "block"
    keeps: ClassVar[bool] = True
    block_causal: ClassVar[bool] = True

    def stores(self, place: Place) -> Bool[Array, " B"]:
        return entered(place) & ~(place.still & (place.whole - place.whole_before == place.attention_block))

    def due(self, place: Place) -> Bool[Array, " B"]:
        """The prompt, and where blocks without a mask are passed over: more than one block is to be stored."""
        apart = place.whole - place.whole_before
        return self.stores(place) & ((place.before < place.first) | (apart > place.attention_block))

    def reach(self, place: Place) -> Int[Array, " B"]:
        return jnp.where(self.stores(place), last_block(place), place.whole)

    def exact(self, *, block_causal: bool, prefix_lm: bool) -> bool:
        del prefix_lm
        return block_causal


def entered(place: Place) -> Bool[Array, " B"]:
    """Which rows are new in an attention block that something lies before."""
    return (place.whole_before != place.whole) & (place.whole > place.origin)
