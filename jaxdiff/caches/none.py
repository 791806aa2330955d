"""No cache."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool

from jaxdiff.caches.base import CacheBase
from jaxdiff.pytree import pytree
from jaxdiff.types import Place


@pytree
class NoCache(CacheBase):
    """Every pass runs over the whole canvas. Exact: nothing can be stale."""

    def due(self, place: Place) -> Bool[Array, " B"]:
        return jnp.ones(place.start.shape, bool)

    def exact(self, *, block_causal: bool, prefix_lm: bool) -> bool:
        del block_causal, prefix_lm
        return True
