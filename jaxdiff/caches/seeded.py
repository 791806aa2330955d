"""The cache of Fast-dLLM v2 (arXiv 2509.26328): what stores a finished block commits the first token of the next.

For models that attend in blocks and whose logits are shifted by one: the last position of a block, which sees nothing
of the next one, is where the next one's first token is read. Blocks of one position are an autoregressive model's: then
it is the usual KV cache, each pass stores one token and reads the next. Source: NVlabs/Fast-dLLM
`v2/generation_functions.py` (`batch_sample`) and the model's own `generate`.
"""

from __future__ import annotations

from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jaxdiff.caches.block import BlockCausal, entered
from jaxdiff.pytree import pytree
from jaxdiff.types import Place


@pytree
class Seeded(BlockCausal):
    """`inner=none`: as cache `block`, and the pass that stores commits the first position of the block that comes next:
    the candidate there, whatever the policy says, and for good.

    As published with `block_length` 8 and `use_block_cache` off. A row that asks for the first token of a block alone
    ends with it.

    Exactness: keys and values are exact. Tokens are not those of no cache, where a policy chooses among a block's first
    position and the others; of an autoregressive model, where there are no others, they are.
    """

    seeds: ClassVar[bool] = True

    def stores(self, place: Place) -> Bool[Array, " B"]:
        """Wherever a block is entered: who does not store has no seed."""
        return entered(place)


@pytree
class SeededDual(Seeded):
    """`inner=dual`: and inside the block that the model attends in, the window is the `block_length` positions that are
    decoded, once the first of them is known; as published with `use_block_cache`.

    The whole block is recomputed where a row begins it, and while the first of those positions is masked.

    Exactness: approximate: the rest of the block stays as its last whole pass saw it; as `inner=none` where
    `block_length` is the model's own.
    """

    narrows: ClassVar[bool] = True

    def reach(self, place: Place) -> Int[Array, " B"]:
        return jnp.where(self._whole(place), super().reach(place), place.start)

    def width(self, place: Place) -> Int[Array, " B"]:
        return jnp.where(self._whole(place), place.attention_block, place.block)

    def exact(self, *, block_causal: bool, prefix_lm: bool) -> bool:
        del block_causal, prefix_lm
        return False

    def _whole(self, place: Place) -> Bool[Array, " B"]:
        """Which rows' pass is over all of an attention block: a first one, too, which no other has gone before."""
        entered = (place.whole_before != place.whole) | ((place.before == place.start) & (place.block_step == 0))
        return entered | place.begins_masked
