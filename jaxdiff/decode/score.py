"""From features to belief: the only code that reduces over the vocabulary.

The head runs on the block alone, one tile of the vocabulary at a time, and keeps of each tile what the merge needs:
no [B, W, V] array outlives a tile.

    features [B W D] --(per tile of V)--> logits [B W tile] -> Running [B W] each -> Belief

Over a mesh each shard of the vocabulary scans its own tiles, and the summaries alone are gathered.
With top-p or top-k the tiles are gone over first for the lowest logit that they leave (`nucleus.py`).
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key

from jaxdiff.decode.decoder import Sampling
from jaxdiff.decode.nucleus import lowest_kept, sortable
from jaxdiff.decode.running import Running, finish, merge, summarise
from jaxdiff.decode.state import fold
from jaxdiff.parallel.mesh import over_vocabulary
from jaxdiff.parallel.rules import LANE
from jaxdiff.protocols import Model
from jaxdiff.pytree import pytree
from jaxdiff.types import NEVER, Belief
from jaxdiff.weights import full

TILE = 4096  # vocabulary entries per tile, a multiple of LANE
COLDEST = 1e-20  # what logits are divided by at least: a smaller temperature would carry them past NEVER, or to inf


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """What the ids mean.

    Attributes:
        size: ids from here on are padding, without mass.
        forbidden: ids without mass: [MASK], and end-of-text under LLaDA's `logits_eos_inf`.
        deferred: ids whose positions go last, with probability 0 (LLaDA's `confidence_eos_eot_inf`).
        tempered: the belief is of softmax(logits / temperature), as Dream, LLaDA2 and SDAR have it, and not of
            softmax(logits), as LLaDA's `generate.py` does. Either way it is of what top-p and top-k leave.
    """

    size: int
    forbidden: tuple[int, ...]
    deferred: tuple[int, ...] = ()
    tempered: bool = False

    @classmethod
    def of(cls, model: Model, sampling: Sampling) -> Vocabulary:
        config = model.config
        text_ends = [token for token in config.eos_ids if token not in config.turn_ends]
        forbidden = (config.mask_token_id, *(text_ends if sampling.forbid_eos else ()))
        return cls(config.vocab_size, forbidden, config.eos_ids if sampling.defer_eos else (), model.tempered)

    @property
    def stand_in(self) -> int:
        """The candidate where none has mass: the first id that is not forbidden."""
        return next(token for token in range(self.size) if token not in self.forbidden)


@pytree
class Draws:
    """What noise is keyed by: the row's key, its step, the pass of the step, and the absolute position; so that it is
    the same however the vocabulary is cut into tiles and shards.
    """

    keys: Key[Array, " B"]
    step: Int[Array, " B"]
    number: Int[Array, ""]  # of the pass: 0 the full one, from 2 on the cheap ones
    positions: Int[Array, "B C"]


def believe(
    features: Float[Array, "B C D"],
    head: Float[Any, "D V"],
    vocabulary: Vocabulary,
    sampling: Sampling,
    draws: Draws,
    *,
    named: Int[Array, "B C n"] | None = None,
    mesh: Mesh | None = None,
) -> Belief:
    """The candidate of each position and how sure the model is of it, float32.

    Args:
        head: in int8 or not; as wide as the vocabulary or wider.
        sampling: temperature 0 takes the argmax; above, Gumbel-max sampling. After the temperature, top-p, then top-k:
            tokens outside have no mass. The token that carries the sum over `top_p` is in, as are all that tie with the
            k-th.
        named: ids whose log-softmax is wanted beside the candidate's.
        mesh: what the head's second axis is spread over; None for one device.
    """
    named = jnp.zeros((*features.shape[:2], 0), jnp.int32) if named is None else named
    wide = jnp.broadcast_to(jnp.asarray(sampling.temperature), draws.keys.shape).astype(jnp.float32)[:, None, None]
    divisor = jnp.where(wide > 0.0, jnp.maximum(wide, COLDEST), 1.0)
    noise_scale = jnp.where(wide > 0.0, 1.0, 0.0) if vocabulary.tempered else wide
    scan = functools.partial(_scan, vocabulary=vocabulary, mesh=mesh)
    cuts = (sampling.top_p, sampling.top_k)
    parts = over_vocabulary(mesh, scan, head, features, divisor, noise_scale, draws, named, cuts)
    return finish(functools.reduce(merge, parts), vocabulary.deferred, vocabulary.stand_in)


def _scan(
    head: Float[Any, "D v"],
    begin: Int[Array, ""],
    features: Float[Array, "B W D"],
    divisor: Float[Array, "B 1 1"],
    noise_scale: Float[Array, "B 1 1"],
    draws: Draws,
    named: Int[Array, "B W n"],
    cuts: tuple[Any, Any],
    *,
    vocabulary: Vocabulary,
    mesh: Mesh | None,
) -> Running:
    """The part of the vocabulary that starts with id `begin` (a multiple of LANE), tile by tile.

    `divisor` is the temperature, 1 where that is 0; `noise_scale` what Gumbel noise is multiplied with.
    """
    size = head.shape[1]
    tile = min(TILE, size)
    tiles = -(-size // tile)
    tempered = vocabulary.tempered

    def ids_of(index: Int[Array, ""]) -> tuple[Int[Array, ""], Int[Array, " v"]]:
        # The last tile is moved back to end with the part; what it then shares with its neighbour is masked.
        first = jnp.minimum(index * tile, size - tile)
        return first, begin + first + jnp.arange(tile, dtype=jnp.int32)

    def plain_of(index: Int[Array, ""]) -> Float[Array, "B W v"]:
        first, ids = ids_of(index)
        allowed = (ids >= begin + index * tile) & (ids < vocabulary.size)
        for token in vocabulary.forbidden:
            allowed &= ids != token
        part = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, first, tile, axis=1), head)
        logits = jnp.matmul(features, full(part, features.dtype), preferred_element_type=jnp.float32)
        # -inf is no mass, as NEVER is; NaN and +inf stay, and are told of in the belief.
        return jnp.maximum(jnp.where(allowed[None, None], logits, NEVER), NEVER)

    def scaled(plain: Float[Array, "B W v"]) -> Float[Array, "B W v"]:
        return jnp.where(plain == NEVER, NEVER, plain / divisor) if tempered else plain

    least = None
    if any(cut is not None for cut in cuts):
        by = jnp.ones_like(divisor) if tempered else 1.0 / divisor
        least = lowest_kept(lambda index: scaled(plain_of(index)), tiles, by, *cuts, mesh)

    def one_tile(index: Int[Array, ""]) -> Running:
        first, ids = ids_of(index)
        plain = plain_of(index)
        logits = scaled(plain)
        if least is not None:
            logits = jnp.where(sortable(logits) >= least[..., None], logits, NEVER)

        def drawn() -> Float[Array, "B W v"]:
            # Keys are folded here and not once for all tiles: at temperature 0 that would be a tenth of a small step.
            own = fold(fold(draws.keys, draws.step), draws.number)
            position_keys = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)))(own, draws.positions)
            lanes = (begin + index * tile) // LANE + jnp.arange(-(-tile // LANE), dtype=jnp.int32)
            noise = jax.vmap(jax.vmap(lambda key: jax.vmap(lambda lane: _lane(key, lane))(lanes)))(position_keys)
            return jnp.take(noise.reshape(*noise.shape[:2], -1), (ids - begin - index * tile) % tile, axis=-1)

        def noisy() -> Running:
            return summarise(logits, jnp.where(logits > NEVER, logits + noise_scale * drawn(), NEVER), ids)

        # Where no row draws, keys are logits, and the compiler finds half of the passes to be the other half.
        running = jax.lax.cond(jnp.any(noise_scale > 0.0), noisy, lambda: summarise(logits, logits, ids))
        at = named - (begin + first)
        inside = (at >= 0) & (at < tile)
        wanted = jnp.take_along_axis(plain, jnp.clip(at, 0, tile - 1), axis=-1)
        running = dataclasses.replace(running, named=jnp.where(inside, wanted, NEVER))
        if least is None and not tempered:
            return running
        own = jnp.take_along_axis(plain, (running.token - (begin + first))[..., None], axis=-1)[..., 0]

        def summed() -> Float[Array, "B W"]:
            return jnp.maximum(jax.nn.logsumexp(plain, axis=-1), NEVER)

        if least is None:  # tempered: at temperature 0 the sum is there already
            whole = jnp.maximum(running.top + jnp.log1p(running.mass), NEVER)
            everything = jax.lax.cond(jnp.any(noise_scale > 0.0), summed, lambda: whole)
        else:
            everything = summed()
        return dataclasses.replace(running, plain=own, all_plain=everything)

    running = one_tile(jnp.int32(0))
    if tiles > 1:
        more = jnp.arange(1, tiles, dtype=jnp.int32)
        running, _ = jax.lax.scan(lambda carry, index: (merge(carry, one_tile(index)), None), running, more)
    return running


def _lane(key: Key[Array, ""], lane: Int[Array, ""]) -> Float[Array, " l"]:
    # Mode "high": the fast one draws no value above 17, and a large vocabulary reaches that.
    return jax.random.gumbel(jax.random.fold_in(key, lane), (LANE,), mode="high")
