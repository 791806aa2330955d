"""What the caches share. A cache is two choices: which window a pass recomputes, and when everything is rebuilt.

    canvas [B L] --(rows that are due: a pass over all)--> KV cache [N B K M E]
                 --(the other live rows: a pass over the window)--> features of the block

A refresh is a full pass like any other: it counts and it commits. Rows are due at different steps; in a step where some
are, the others take their ordinary one. In every cached pass a column left of a row's padding or right of its end is
attended to by nobody, also where the end has just moved: the published dual cache goes on attending to what it cut.
"""

from __future__ import annotations

from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jaxdiff.pytree import number, pytree
from jaxdiff.types import Count, Place

UNTIL_NEXT = 2**20  # a refresh that never comes: a decode has fewer passes


class CacheBase:
    """The defaults of `jaxdiff.protocols.Cache`."""

    window: ClassVar[str] = "canvas"
    keeps: ClassVar[bool] = False
    block_causal: ClassVar[bool] = False
    seeds: ClassVar[bool] = False
    narrows: ClassVar[bool] = False

    def stores(self, place: Place) -> Bool[Array, " B"]:
        return jnp.zeros(place.start.shape, bool)

    def reach(self, place: Place) -> Int[Array, " B"]:
        return place.whole

    def width(self, place: Place) -> Int[Array, " B"]:
        return jnp.full_like(place.start, place.attention_block)

    def exact(self, *, block_causal: bool, prefix_lm: bool) -> bool:
        del block_causal, prefix_lm
        return False


@pytree
class RefreshedByBlock(CacheBase):
    """Rebuilt when a row enters a block, and every `refresh` of its steps there."""

    refresh: Count = number(default=UNTIL_NEXT, low=1, high=UNTIL_NEXT, whole=True)

    def due(self, place: Place) -> Bool[Array, " B"]:
        return place.block_step % jnp.asarray(self.refresh) == 0


def last_block(place: Place) -> Int[Array, " B"]:
    """The attention block that the row stood in at its last step; at its first step, the one that it stands in."""
    return jnp.where(place.before < place.first, place.whole, place.whole_before)
