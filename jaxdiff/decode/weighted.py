"""What `constraints.awrs` draws from: the tokens of positions in the order of their Gumbel keys, from the head's tiles.

    features [B C D] --(per tile of V)--> its n highest keys [B C n], merged -> Ranked

The sorted vocabulary never exists: the next n tokens are those of another scan, in which the ones before have no key.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from jaxdiff.constraints.awrs import WIDTH, Mark, Ranked
from jaxdiff.decode.state import fold
from jaxdiff.decode.tiles import Asked, Tile, over_tiles
from jaxdiff.pytree import pytree, static
from jaxdiff.types import NEVER

AGAIN = 2**20  # between the noise of two walks, in passes of a step: more than any step has


@pytree
class Tiled:
    """A source of AWRS: p is what is drawn from, after temperature, top-p, top-k and push; the temperature is above 0.

    Noise is that of `tiles.Draws`: the first token of walk 0 is the candidate that `believe` gives of the same.
    """

    asked: Asked
    head: Float[Any, "D V"]
    total: Float[Array, "B C"]
    width: int = static(default=WIDTH)
    mesh: Mesh | None = static(default=None)

    @classmethod
    def of(cls, asked: Asked, head: Float[Any, "D V"], *, width: int = WIDTH, mesh: Mesh | None = None) -> Tiled:
        """`asked` as `Asked.of` makes it; `width`: tokens that are ranked at a time."""

        def summed(tile: Tile) -> Float[Array, "B C"]:
            return jax.nn.logsumexp(_scaled(tile), axis=-1)

        return cls(asked, head, over_tiles(asked, head, summed, jnp.logaddexp, mesh), width, mesh)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.total.shape

    def ranked(self, walk: int, after: Mark, without: Mark | None) -> Ranked:
        """As `Source.ranked`."""

        def best(tile: Tile, after: Mark, without: Mark | None) -> Ranked:
            keys = _keys(tile, walk)
            gone = after.behind(keys, tile.ids[None, None])
            gone = gone if without is None else gone | without.behind(_keys(tile, 0), tile.ids[None, None])
            keys, at = jax.lax.top_k(jnp.where(gone, NEVER, keys), min(self.width, keys.shape[-1]))
            return Ranked(tile.ids[at], keys, jnp.take_along_axis(_scaled(tile), at, axis=-1))

        found = over_tiles(self.asked, self.head, best, self._merged, self.mesh, after, without)
        return dataclasses.replace(found, log_prob=found.log_prob - self.total[..., None])

    def uniform(self, number: Int[Array, "B C"]) -> Float[Array, "B C"]:
        """As `Source.uniform`."""
        draws = self.asked.draws
        own = fold(fold(draws.keys, draws.step), draws.number + 2 * AGAIN)
        each = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)))(own, draws.positions)
        each = jax.vmap(jax.vmap(jax.random.fold_in))(each, number)
        return jax.vmap(jax.vmap(lambda key: jax.random.uniform(key, minval=jnp.finfo(jnp.float32).tiny)))(each)

    def _merged(self, a: Ranked, b: Ranked) -> Ranked:
        """The highest of both; `a` has the lower ids, which go first on equal keys."""
        both = jax.tree.map(lambda one, other: jnp.concatenate([one, other], axis=-1), a, b)
        _, at = jax.lax.top_k(both.keys, min(self.width, both.keys.shape[-1]))
        return jax.tree.map(lambda leaf: jnp.take_along_axis(leaf, at, axis=-1), both)


def _scaled(tile: Tile) -> Float[Array, "B C v"]:
    """The logits that softmax draws from."""
    return tile.logits if tile.asked.vocabulary.tempered else jnp.maximum(tile.logits / tile.asked.divisor, NEVER)


def _keys(tile: Tile, walk: int) -> Float[Array, "B C v"]:
    draws = tile.asked.draws
    own = dataclasses.replace(draws, number=draws.number + walk * AGAIN)
    return dataclasses.replace(tile, asked=dataclasses.replace(tile.asked, draws=own)).noisy()
