"""From features to belief: the only code that reduces over the vocabulary.

The head runs on the block alone, one tile of the vocabulary at a time, and keeps of each tile what the merge needs:
no [B, W, V] array outlives a tile.

    features [B W D] --(per tile of V)--> logits [B W tile] -> _Running [B W] each -> Belief

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
from jaxtyping import Array, Bool, Float, Int, Key

from jaxdiff.decode.decoder import Sampling
from jaxdiff.decode.nucleus import lowest_kept, sortable
from jaxdiff.decode.state import fold
from jaxdiff.parallel import LANE, over_vocabulary
from jaxdiff.pytree import pytree
from jaxdiff.types import NEVER, Belief, Model
from jaxdiff.weights import full

TILE = 4096  # vocabulary entries per tile, a multiple of LANE


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
        forbidden = (config.mask_token_id, *((config.eos_token_id,) if sampling.forbid_eos else ()))
        return cls(config.vocab_size, forbidden, config.eos_ids if sampling.defer_eos else (), model.tempered)


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
class _Running:
    """Merged over the tiles so far."""

    token: Int[Array, "B W"]
    key: Float[Array, "B W"]  # the candidate's sort key: its logit, plus noise at temperature > 0
    next_key: Float[Array, "B W"]
    logit: Float[Array, "B W"]  # the candidate's own
    best_other: Float[Array, "B W"]  # highest logit of all but the candidate
    rest: Float[Array, "B W"]  # logsumexp of all but the candidate
    top: Float[Array, "B W"]  # highest logit of all: the scale of the two sums below
    mass: Float[Array, "B W"]  # sum of exp(l - top) over all but the one that is highest: small, not 1 + small
    moment: Float[Array, "B W"]  # sum of exp(l - top) (l - top)
    plain: Float[Array, "B W"] | None  # the candidate's logit before temperature and cuts; None: the same as `logit`
    all_plain: Float[Array, "B W"] | None  # logsumexp of all before temperature and cuts; None: that of what is above
    named: Float[Array, "B W n"]  # plain logits of the ids that were asked for


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
    divisor = jnp.where(wide > 0.0, wide, 1.0)
    noise_scale = jnp.where(wide > 0.0, 1.0, 0.0) if vocabulary.tempered else wide
    scan = functools.partial(_scan, vocabulary=vocabulary, mesh=mesh)
    cuts = (sampling.top_p, sampling.top_k)
    parts = over_vocabulary(mesh, scan, head, features, divisor, noise_scale, draws, named, cuts)
    return _finish(functools.reduce(_merge, parts), vocabulary.deferred)


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
) -> _Running:
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
        return jnp.where(allowed[None, None], logits, NEVER)

    def scaled(plain: Float[Array, "B W v"]) -> Float[Array, "B W v"]:
        return jnp.where(plain == NEVER, NEVER, plain / divisor) if tempered else plain

    least = None
    if any(cut is not None for cut in cuts):
        by = jnp.ones_like(divisor) if tempered else 1.0 / divisor
        least = lowest_kept(lambda index: scaled(plain_of(index)), tiles, by, *cuts, mesh)

    def one_tile(index: Int[Array, ""]) -> _Running:
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

        def noisy() -> _Running:
            return _summarise(logits, jnp.where(logits > NEVER, logits + noise_scale * drawn(), NEVER), ids)

        # Where no row draws, keys are logits, and the compiler finds half of the passes to be the other half.
        running = jax.lax.cond(jnp.any(noise_scale > 0.0), noisy, lambda: _summarise(logits, logits, ids))
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
        running, _ = jax.lax.scan(lambda carry, index: (_merge(carry, one_tile(index)), None), running, more)
    return running


def _lane(key: Key[Array, ""], lane: Int[Array, ""]) -> Float[Array, " l"]:
    # Mode "high": the fast one draws no value above 17, and a large vocabulary reaches that.
    return jax.random.gumbel(jax.random.fold_in(key, lane), (LANE,), mode="high")


def _summarise(logits: Float[Array, "B W v"], keys: Float[Array, "B W v"], ids: Int[Array, " v"]) -> _Running:
    """One tile, in one pass of exponentials: of all but the candidate and the highest, scaled by the best of these.

    Sums leave out what may be 1 beside a tiny rest, and add it where it belongs: a rest of 1e-12 stays a rest.
    """
    at, highest = (jnp.argmax(x, axis=-1, keepdims=True) for x in (keys, logits))
    lane = jnp.arange(logits.shape[-1])[None, None]
    others = lane != at

    def pick(values: Float[Array, "B W v"]) -> Float[Array, "B W"]:
        return jnp.take_along_axis(values, at, axis=-1)[..., 0]

    token_logit, top = pick(logits), jnp.max(logits, axis=-1)
    best_other = jnp.max(jnp.where(others, logits, NEVER), axis=-1)
    below = logits - best_other[..., None]
    weights = jnp.where(others & (lane != highest), jnp.exp(below), 0.0)
    total, moment = jnp.sum(weights, axis=-1), jnp.sum(weights * below, axis=-1)
    calm = (at == highest)[..., 0]  # the candidate is the highest: the rest lies below it, else the highest is in it
    drop, lift = best_other - top, token_logit - top
    return _Running(
        token=ids[at[..., 0]],
        key=pick(keys),
        next_key=jnp.max(jnp.where(others, keys, NEVER), axis=-1),
        logit=token_logit,
        best_other=best_other,
        # A tile of one entry has no rest.
        rest=jnp.maximum(best_other + jnp.log(total + jnp.where(calm, 0.0, 1.0)), NEVER),
        top=top,
        mass=jnp.where(calm, total * jnp.exp(drop), total + jnp.exp(lift)),
        moment=jnp.where(calm, jnp.exp(drop) * (moment + drop * total), moment + jnp.exp(lift) * lift),
        plain=None,
        all_plain=None,
        named=jnp.zeros((*top.shape, 0)),
    )


def _merge(a: _Running, b: _Running) -> _Running:
    """`a` lies left of `b`: on equal keys the lower id stays the candidate, as in an argmax over all.

    So it does where its key is no number: ids of padding, which lie right of all others, are never candidates.
    """
    first: Bool[Array, "B W"] = ~(a.key < b.key)

    def winner(x: Any, y: Any) -> Any:
        return jnp.where(first, x, y)

    loser_key, loser_logit = winner(b.key, a.key), winner(b.logit, a.logit)
    top = jnp.maximum(a.top, b.top)
    scale_a, scale_b = jnp.exp(a.top - top), jnp.exp(b.top - top)
    return _Running(
        token=winner(a.token, b.token),
        key=winner(a.key, b.key),
        next_key=jnp.maximum(loser_key, winner(a.next_key, b.next_key)),
        logit=winner(a.logit, b.logit),
        best_other=jnp.maximum(loser_logit, jnp.maximum(a.best_other, b.best_other)),
        rest=jnp.logaddexp(jnp.logaddexp(a.rest, b.rest), loser_logit),
        top=top,
        mass=a.mass * scale_a + b.mass * scale_b + jnp.minimum(scale_a, scale_b),
        moment=scale_a * (a.moment + (a.top - top) * (1.0 + a.mass))
        + scale_b * (b.moment + (b.top - top) * (1.0 + b.mass)),
        plain=None if a.plain is None else winner(a.plain, b.plain),
        all_plain=None if a.all_plain is None else jnp.logaddexp(a.all_plain, b.all_plain),
        named=jnp.maximum(a.named, b.named),
    )


def _finish(r: _Running, deferred: tuple[int, ...]) -> Belief:
    log_odds = r.logit - r.rest
    all_mass = jnp.logaddexp(r.logit, r.rest)
    last = jnp.zeros(r.token.shape, bool)
    for token in deferred:
        last |= r.token == token
    if r.plain is None or r.all_plain is None:
        whole, log_prob = all_mass, jax.nn.log_sigmoid(log_odds)
    else:
        whole, log_prob = r.all_plain, jnp.minimum(r.plain - r.all_plain, 0.0)
    return Belief(
        token=r.token,
        prob=jnp.where(last, 0.0, jax.nn.sigmoid(log_odds)),
        log_odds=jnp.where(last, NEVER, log_odds),
        runner_up=jnp.where(last, 1.0, jnp.exp(r.best_other - all_mass)),
        entropy=jnp.where(last, -NEVER, jnp.log1p(r.mass) - r.moment / (1.0 + r.mass)),
        gap=r.key - r.next_key,
        log_prob=log_prob,
        named=jnp.maximum(r.named - whole[..., None], NEVER),
    )
