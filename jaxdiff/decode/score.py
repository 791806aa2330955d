"""From features to beliefs: the only code that reduces over the vocabulary.

The head runs on the block alone, one tile of the vocabulary at a time, and keeps of each tile what the merge needs:
no [B, W, V] array outlives a tile.

    features [B W D] --(per tile of V)--> logits [B W tile] -> _Running [B W] each -> Beliefs

Over a mesh each shard of the vocabulary scans its own tiles, and the summaries alone are gathered.
With top-p or top-k the tiles are gone over first for the lowest logit that they leave (`nucleus.py`).
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, Key

from jaxdiff.decode.nucleus import lowest_kept, sortable
from jaxdiff.decode.state import fold
from jaxdiff.parallel import LANE, over_vocabulary
from jaxdiff.types import Count, Leaf, pytree
from jaxdiff.weights import full

TILE = 4096  # vocabulary entries per tile, a multiple of LANE
NEVER = -1e30  # the logit of a forbidden token: no mass, and finite, so that nothing becomes NaN


@pytree
class Beliefs:
    """What `Score` needs of the vocabulary, [B, W] each; meanings in `jaxdiff.types.Score`."""

    token: Int[Array, "B W"]
    prob: Float[Array, "B W"]
    log_odds: Float[Array, "B W"]
    runner_up: Float[Array, "B W"]
    entropy: Float[Array, "B W"]
    gap: Float[Array, "B W"]


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


def beliefs(
    features: Float[Array, "B W D"],
    head: Float[Any, "D V"],
    *,
    vocabulary: int,
    mesh: Mesh | None,
    forbidden: tuple[int, ...],
    deferred: tuple[int, ...],
    temperature: Leaf,
    keys: Key[Array, " B"],
    step: Int[Array, " B"],
    positions: Int[Array, "B W"],
    top_p: Leaf | None = None,
    top_k: Count | None = None,
    tempered: bool = False,
) -> Beliefs:
    """The candidate of each position and how sure the model is of it, float32.

    Args:
        head: in int8 or not; as wide as the vocabulary, or wider: ids from `vocabulary` on are padding, without mass.
        mesh: what the head's second axis is spread over; None for one device.
        forbidden: ids without mass: [MASK], and end-of-text under LLaDA's `logits_eos_inf`.
        deferred: ids whose positions go last, with probability 0 (LLaDA's `confidence_eos_eot_inf`).
        temperature: 0 takes the argmax; above, Gumbel-max sampling.
        keys, step, positions: noise is keyed by the row's key, its step, the absolute position and the lane of the
            vocabulary, so that it is the same however the vocabulary is cut into tiles and shards.
        top_p, top_k: after the temperature, in this order, tokens outside have no mass. The token that carries the sum
            over `top_p` is in, as are all that tie with the k-th.
        tempered: the beliefs are of softmax(logits / temperature), as Dream, LLaDA2 and SDAR have it, and not of
            softmax(logits), as LLaDA's `generate.py` does. Either way they are of what top-p and top-k leave.
    """
    scale = jnp.broadcast_to(jnp.asarray(temperature), keys.shape).astype(jnp.float32)[:, None, None]
    heat = jnp.where(scale > 0.0, scale, 1.0)
    loudness = jnp.where(scale > 0.0, 1.0, 0.0) if tempered else scale
    scan = functools.partial(_scan, vocabulary=vocabulary, forbidden=forbidden, tempered=tempered, mesh=mesh)
    parts = over_vocabulary(mesh, scan, head, features, heat, loudness, (keys, step, positions), top_p, top_k)
    return _finish(functools.reduce(_merge, parts), deferred)


def _scan(
    head: Float[Any, "D v"],
    begin: Int[Array, ""],
    features: Float[Array, "B W D"],
    heat: Float[Array, "B 1 1"],
    loudness: Float[Array, "B 1 1"],
    place: tuple[Key[Array, " B"], Int[Array, " B"], Int[Array, "B W"]],
    top_p: Leaf | None,
    top_k: Count | None,
    *,
    vocabulary: int,
    forbidden: tuple[int, ...],
    tempered: bool,
    mesh: Mesh | None,
) -> _Running:
    """The part of the vocabulary that starts with id `begin` (a multiple of LANE), tile by tile."""
    size = head.shape[1]
    tile = min(TILE, size)
    tiles = -(-size // tile)

    def ids_of(index: Int[Array, ""]) -> tuple[Int[Array, ""], Int[Array, " v"]]:
        # The last tile is moved back to end with the part; what it then shares with its neighbour is masked.
        first = jnp.minimum(index * tile, size - tile)
        return first, begin + first + jnp.arange(tile, dtype=jnp.int32)

    def logits_of(index: Int[Array, ""]) -> Float[Array, "B W v"]:
        first, ids = ids_of(index)
        allowed = (ids >= begin + index * tile) & (ids < vocabulary)
        for token in forbidden:
            allowed &= ids != token
        part = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, first, tile, axis=1), head)
        logits = jnp.matmul(features, full(part, features.dtype), preferred_element_type=jnp.float32)
        logits = logits / heat if tempered else logits
        return jnp.where(allowed[None, None], logits, NEVER)

    least = None
    if top_p is not None or top_k is not None:
        by = 1.0 / heat if not tempered else jnp.ones_like(heat)
        least = lowest_kept(logits_of, tiles, by, top_p, top_k, mesh)

    def one_tile(index: Int[Array, ""]) -> _Running:
        _, ids = ids_of(index)
        logits = logits_of(index)
        if least is not None:
            logits = jnp.where(sortable(logits) >= least[..., None], logits, NEVER)

        def drawn() -> Float[Array, "B W v"]:
            # Keys are folded here and not once for all tiles: at temperature 0 that would be a tenth of a small step.
            keys, step, positions = place
            position_keys = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)))(fold(fold(keys, step), 0), positions)
            lanes = (begin + index * tile) // LANE + jnp.arange(-(-tile // LANE), dtype=jnp.int32)
            noise = jax.vmap(jax.vmap(lambda key: jax.vmap(lambda lane: _lane(key, lane))(lanes)))(position_keys)
            return jnp.take(noise.reshape(*noise.shape[:2], -1), (ids - begin - index * tile) % tile, axis=-1)

        def noisy() -> _Running:
            return _summarise(logits, jnp.where(logits > NEVER, logits + loudness * drawn(), NEVER), ids)

        # Where no row draws, keys are logits, and the compiler finds half of the passes to be the other half.
        return jax.lax.cond(jnp.any(loudness > 0.0), noisy, lambda: _summarise(logits, logits, ids))

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
    )


def _finish(r: _Running, deferred: tuple[int, ...]) -> Beliefs:
    log_odds = r.logit - r.rest
    all_mass = jnp.logaddexp(r.logit, r.rest)
    last = jnp.zeros(r.token.shape, bool)
    for token in deferred:
        last |= r.token == token
    return Beliefs(
        token=r.token,
        prob=jnp.where(last, 0.0, jax.nn.sigmoid(log_odds)),
        log_odds=jnp.where(last, NEVER, log_odds),
        runner_up=jnp.where(last, 1.0, jnp.exp(r.best_other - all_mass)),
        entropy=jnp.where(last, -NEVER, jnp.log1p(r.mass) - r.moment / (1.0 + r.mass)),
        gap=r.key - r.next_key,
    )
