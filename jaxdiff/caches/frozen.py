"""FreeCache (arXiv 2505.21467): what is finished is frozen, the window is the block and all right of it.

The first pass is over the whole canvas; the prompt's keys and values are frozen then, a block's when it is done. The
classes differ in what a finished block is frozen as.

Exactness: approximate on a bidirectional model; exact with refresh=1. Where attention is block-causal, clean and prompt
are exact too, and prompt under a mask that hides the answer from the prompt (`prefix_lm` in a model's config).
"""

from __future__ import annotations

from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jaxdiff.caches.base import UNTIL_NEXT, CacheBase, last_block
from jaxdiff.pytree import number, pytree
from jaxdiff.types import Count, Place


@pytree
class Frozen(CacheBase):
    """`clean`: a finished block takes part once more, without a mask, in the first pass of the next one, and is frozen
    as that sees it. It costs no pass more.

    Attributes:
        refresh: all is rebuilt every so many steps of the row.
    """

    refresh: Count = number(default=UNTIL_NEXT, low=1, high=UNTIL_NEXT, whole=True)

    window: ClassVar[str] = "suffix"
    keeps: ClassVar[bool] = True

    def due(self, place: Place) -> Bool[Array, " B"]:
        return place.row_step % jnp.asarray(self.refresh) == 0

    def reach(self, place: Place) -> Int[Array, " B"]:
        return last_block(place)

    def exact(self, *, block_causal: bool, prefix_lm: bool) -> bool:
        del prefix_lm
        return block_causal


@pytree
class FrozenAtCommit(Frozen):
    """`commit`, as published: a block is frozen as the pass saw it that committed its last tokens, masks among them.

    Small models lose much accuracy with it (`docs/measurements.md`).
    """

    def reach(self, place: Place) -> Int[Array, " B"]:
        return place.whole

    def exact(self, *, block_causal: bool, prefix_lm: bool) -> bool:
        del block_causal, prefix_lm
        return False


@pytree
class FrozenPrompt(Frozen):
    """`prompt`: nothing but the prompt is ever frozen."""

    keeps: ClassVar[bool] = False

    def reach(self, place: Place) -> Int[Array, " B"]:
        return place.first

    def exact(self, *, block_causal: bool, prefix_lm: bool) -> bool:
        return block_causal or prefix_lm
