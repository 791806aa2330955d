"""The head over the vocabulary, one tile at a time: what is asked of it, and the logits of one tile.

    features [B W D] --(per tile of V)--> logits [B W tile] -> a summary [B W] each -> merged

No [B, W, V] array outlives a tile. Over a mesh each shard of the vocabulary goes over its own tiles, and the summaries
alone are gathered. With top-p or top-k the tiles are gone over first for the lowest logit that they leave
(`nucleus.py`).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, Key, UInt32

from jaxdiff.decode.decoder import Sampling
from jaxdiff.decode.frechet import Bounds, bounded
from jaxdiff.decode.nucleus import lowest_kept, sortable
from jaxdiff.decode.push import Push
from jaxdiff.decode.state import fold
from jaxdiff.decode.vocabulary import Vocabulary
from jaxdiff.parallel.mesh import over_vocabulary
from jaxdiff.parallel.rules import LANE
from jaxdiff.pytree import pytree, static
from jaxdiff.types import NEVER, Count, Leaf
from jaxdiff.weights import full

TILE = 4096  # vocabulary entries per tile, a multiple of LANE
COLDEST = 1e-20  # what logits are divided by at least: a smaller temperature would carry them past NEVER, or to inf
Summary = TypeVar("Summary")


@pytree
class Draws:
    """What noise is keyed by: the row's key, its step, the pass of the step, and the absolute position; so that it is
    the same however the vocabulary is cut into tiles and shards.
    """

    keys: Key[Array, " B"]
    step: Int[Array, " B"]
    number: Int[Array, ""]  # of the pass: 0 the full one, from 2 on the cheap ones
    positions: Int[Array, "B C"]


@pytree
class Admitted:
    """Which ids may be drawn at each position: those of some classes.

    Attributes:
        of: the class of each id; the last entry is that of any id beyond.
        kinds: the classes of each position.
    """

    of: Int[Array, " n"]
    kinds: Bool[Array, "B C K"]

    def among(self, ids: Int[Array, " v"]) -> Bool[Array, "B C v"]:
        return self.kinds[..., self.of[jnp.minimum(ids, self.of.shape[0] - 1)]]


@pytree
class Asked:
    """What the vocabulary is gone over for.

    Attributes:
        divisor: the temperature, 1 where that is 0.
        noise_scale: what Gumbel noise is multiplied with.
        top_p, top_k: as in `Sampling`.
        named: ids whose plain logits are wanted.
        push: what is added to logits; None for nothing.
        within: bounds on what is drawn from; None for none.
        admitted: the only ids that are drawn, before top-p and top-k; None for all.
    """

    features: Float[Array, "B W D"]
    divisor: Float[Array, "B 1 1"]
    noise_scale: Float[Array, "B 1 1"]
    draws: Draws
    top_p: Leaf | None
    top_k: Count | None
    named: Int[Array, "B W n"]
    push: Push | None
    vocabulary: Vocabulary = static()
    within: Bounds | None = None
    admitted: Admitted | None = None

    @classmethod
    def of(
        cls,
        features: Float[Array, "B W D"],
        vocabulary: Vocabulary,
        sampling: Sampling,
        draws: Draws,
        push: Push | None = None,
    ) -> Asked:
        wide = jnp.broadcast_to(jnp.asarray(sampling.temperature), draws.keys.shape).astype(jnp.float32)[:, None, None]
        divisor = jnp.where(wide > 0.0, jnp.maximum(wide, COLDEST), 1.0)
        noise_scale = jnp.where(wide > 0.0, 1.0, 0.0) if vocabulary.tempered else wide
        return cls(
            features=features,
            divisor=divisor,
            noise_scale=noise_scale,
            draws=draws,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            named=jnp.zeros((*features.shape[:2], 0), jnp.int32),
            push=push,
            vocabulary=vocabulary,
        )

    @property
    def cuts(self) -> bool:
        """Whether tokens lose their mass to top-p or top-k."""
        return self.top_p is not None or self.top_k is not None

    @property
    def drawn(self) -> Bool[Array, ""]:
        """Whether noise is added in any row."""
        return jnp.any(self.noise_scale > 0.0)


def over_tiles(
    asked: Asked,
    head: Float[Any, "D V"],
    summarise: Callable[..., Summary],
    merge: Callable[[Summary, Summary], Summary],
    mesh: Mesh | None,
    *given: Any,
) -> Summary:
    """The summaries of all tiles, `summarise(tile, *given)`, merged from left to right.

    `mesh`: what the head's second axis is spread over; `given`: arrays that the summary needs beside, which over a mesh
    it cannot take from around it.
    """

    def on_shard(head: Float[Any, "D v"], begin: Int[Array, ""], asked: Asked, *given: Any) -> Summary:
        part = Part.of(asked, head, begin, mesh)

        def of(index: Int[Array, ""]) -> Summary:
            return summarise(part.at(index), *given)

        running = of(jnp.int32(0))
        if part.tiles > 1:
            more = jnp.arange(1, part.tiles, dtype=jnp.int32)
            running, _ = jax.lax.scan(lambda carry, i: (merge(carry, of(i)), None), running, more)
        return running

    return functools.reduce(merge, over_vocabulary(mesh, on_shard, head, asked, *given))


@dataclasses.dataclass(frozen=True)
class Part:
    """The part of the vocabulary that starts with id `begin` (a multiple of LANE).

    `least`: the lowest logit that top-p and top-k leave, `sortable`.
    """

    asked: Asked
    head: Float[Any, "D v"]
    begin: Int[Array, ""]
    least: UInt32[Array, "B W"] | None = None

    @classmethod
    def of(cls, asked: Asked, head: Float[Any, "D v"], begin: Int[Array, ""], mesh: Mesh | None) -> Part:
        part = cls(asked, head, begin)
        if not asked.cuts:
            return part
        by = jnp.ones_like(asked.divisor) if asked.vocabulary.tempered else 1.0 / asked.divisor
        least = lowest_kept(lambda index: part.at(index).logits, part.tiles, by, asked.top_p, asked.top_k, mesh)
        return dataclasses.replace(part, least=least)

    @property
    def width(self) -> int:
        """Of a tile."""
        return min(TILE, self.head.shape[1])

    @property
    def tiles(self) -> int:
        return -(-self.head.shape[1] // self.width)

    def at(self, index: Int[Array, ""]) -> Tile:
        """Tile number `index`. The last is moved back to end with the part; what it shares has no mass there."""
        vocabulary, width = self.asked.vocabulary, self.width
        first = jnp.minimum(index * width, self.head.shape[1] - width)
        ids = self.begin + first + jnp.arange(width, dtype=jnp.int32)
        allowed = (ids >= self.begin + index * width) & (ids < vocabulary.size)
        for token in vocabulary.forbidden:
            allowed &= ids != token
        part = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, first, width, axis=1), self.head)

        def said(features: Float[Array, "B W D"]) -> Float[Array, "B W v"]:
            logits = jnp.matmul(features, full(part, features.dtype), preferred_element_type=jnp.float32)
            # -inf is no mass, as NEVER is; NaN and +inf stay, and are told of in the belief.
            return jnp.maximum(jnp.where(allowed[None, None], logits, NEVER), NEVER)

        logits = plain = said(self.asked.features)
        if (within := self.asked.within) is not None:
            logits = bounded(plain, said(within.marginal), within, self.asked.divisor)
        if (push := self.asked.push) is not None:
            pushed = (ids[None, None] == push.token[..., None]) & (plain != NEVER)
            logits = logits + jnp.where(pushed, push.amount[..., None], 0.0)
        if vocabulary.tempered:
            logits = jnp.where(plain == NEVER, NEVER, logits / self.asked.divisor)
        if (admitted := self.asked.admitted) is not None:
            logits = jnp.where(admitted.among(ids), logits, NEVER)
        if self.least is not None:
            logits = jnp.where(sortable(logits) >= self.least[..., None], logits, NEVER)
        return Tile(self.asked, ids, self.begin + index * width, plain, logits)


@dataclasses.dataclass(frozen=True)
class Tile:
    """Some ids of the vocabulary, and what the head says of them.

    Attributes:
        start: the id that the noise of this tile is counted from.
        plain: before the push, temperature and cuts.
        logits: after the push and the cuts; and after the temperature, where the vocabulary is tempered.
    """

    asked: Asked
    ids: Int[Array, " v"]
    start: Int[Array, ""]
    plain: Float[Array, "B W v"]
    logits: Float[Array, "B W v"]

    def noisy(self) -> Float[Array, "B W v"]:
        """The logits with the rows' noise: the highest is drawn."""
        draws, width = self.asked.draws, self.ids.shape[0]
        # Keys are folded here and not once for all tiles: at temperature 0 that would be a tenth of a small step.
        own = fold(fold(draws.keys, draws.step), draws.number)
        position_keys = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)))(own, draws.positions)
        lanes = self.start // LANE + jnp.arange(-(-width // LANE), dtype=jnp.int32)
        noise = jax.vmap(jax.vmap(lambda key: jax.vmap(lambda lane: _lane(key, lane))(lanes)))(position_keys)
        noise = jnp.take(noise.reshape(*noise.shape[:2], -1), (self.ids - self.start) % width, axis=-1)
        return jnp.where(self.logits > NEVER, self.logits + self.asked.noise_scale * noise, NEVER)


def _lane(key: Key[Array, ""], lane: Int[Array, ""]) -> Float[Array, " l"]:
    # Mode "high": the fast one draws no value above 17, and a large vocabulary reaches that.
    return jax.random.gumbel(jax.random.fold_in(key, lane), (LANE,), mode="high")
