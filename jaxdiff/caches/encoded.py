"""The cache of models that encode visible tokens apart from masks (ENAT, arXiv 2411.06959)."""

from __future__ import annotations

from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Bool

from jaxdiff.caches.base import CacheBase
from jaxdiff.pytree import pytree
from jaxdiff.types import Place


@pytree
class Encoded(CacheBase):
    """A token is encoded once, in the step after the one that committed it; every step decodes what is masked.

    For models of the family `enat`, and the only cache that they have besides none. A step's work is that of the new
    tokens in the encoder and of the masks in the decoder.

    Exactness: exact by construction: a token sees those that were revealed no later than itself, with a cache or
    without one.
    """

    window: ClassVar[str] = "masks"

    def due(self, place: Place) -> Bool[Array, " B"]:
        """Nothing is ever rebuilt."""
        return jnp.zeros(place.start.shape, bool)

    def exact(self, *, block_causal: bool, prefix_lm: bool) -> bool:
        del block_causal, prefix_lm
        return True
