"""From features to belief, position by position.

features [B W D] --(per tile of V, `tiles.py`)--> Running [B W] each, merged (`running.py`) -> Belief
--(the same, of the ids that end a text alone)--> Ends, merged -> where, and how surely
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from jaxdiff.decode.decoder import Sampling
from jaxdiff.decode.frechet import Bounds
from jaxdiff.decode.push import Push
from jaxdiff.decode.running import Running, finish, merge, summarise
from jaxdiff.decode.tiles import TILE as TILE
from jaxdiff.decode.tiles import Admitted, Asked, Draws, Tile, over_tiles
from jaxdiff.decode.vocabulary import Vocabulary
from jaxdiff.pytree import pytree
from jaxdiff.types import NEVER, Belief
from jaxdiff.weights import full


def believe(
    features: Float[Array, "B C D"],
    head: Float[Any, "D V"],
    vocabulary: Vocabulary,
    sampling: Sampling,
    draws: Draws,
    *,
    named: Int[Array, "B C n"] | None = None,
    push: Push | None = None,
    within: tuple[Float[Array, "B C D"], Float[Array, " B"]] | None = None,
    admitted: Admitted | None = None,
    mesh: Mesh | None = None,
) -> Belief:
    """The candidate of each position and how sure the model is of it, float32.

    Args:
        head: in int8 or not; as wide as the vocabulary or wider.
        sampling: temperature 0 takes the argmax; above, Gumbel-max sampling. After the temperature, top-p, then top-k:
            tokens outside have no mass. The token that carries the sum over `top_p` is in, as are all that tie with the
            k-th.
        named: ids whose log-softmax is wanted beside the candidate's.
        push: what is added to logits before all else; `log_prob` and `named` are without it.
        within: features and log-masses of `frechet.Bounds`, to which what is drawn from is clipped before push and
            cuts; `log_prob` and `named` are without it.
        admitted: what may be the candidate, before the cuts; the belief is of these alone, but for `log_prob` and
            `named`, which are of all.
        mesh: what the head's second axis is spread over; None for one device.
    """
    asked = Asked.of(features, vocabulary, sampling, draws, push)
    asked = asked if named is None else dataclasses.replace(asked, named=named)
    asked = dataclasses.replace(asked, admitted=admitted)
    if within is not None:
        marginal, log_mass = within
        none = jnp.zeros(features.shape[:2], jnp.int32)
        total, _ = _drawn(asked, head, none, mesh)
        marginal_total, _ = _drawn(dataclasses.replace(asked, features=marginal), head, none, mesh)
        asked = dataclasses.replace(asked, within=Bounds(marginal, log_mass, total, marginal_total))
    running = over_tiles(asked, head, summary, merge, mesh)
    return finish(running, vocabulary.deferred, vocabulary.stand_in)


def summary(tile: Tile) -> Running:
    """What is kept of a tile."""
    asked, plain, logits, ids = tile.asked, tile.plain, tile.logits, tile.ids
    # Where no row draws, keys are logits, and the compiler finds half of the passes to be the other half.
    running = jax.lax.cond(
        asked.drawn, lambda: summarise(logits, tile.noisy(), ids), lambda: summarise(logits, logits, ids)
    )
    at = asked.named - ids[0]
    inside = (asked.named >= tile.start) & (at < ids.shape[0])
    wanted = jnp.take_along_axis(plain, jnp.clip(at, 0, ids.shape[0] - 1), axis=-1)
    running = dataclasses.replace(running, named=jnp.where(inside, wanted, NEVER))
    apart = asked.cuts or asked.push is not None or asked.within is not None or asked.admitted is not None
    if not (apart or asked.vocabulary.tempered):
        return running
    own = jnp.take_along_axis(plain, (running.token - ids[0])[..., None], axis=-1)[..., 0]

    def summed() -> Float[Array, "B W"]:
        return jnp.maximum(jax.nn.logsumexp(plain, axis=-1), NEVER)

    if apart:
        everything = summed()
    else:  # tempered: at temperature 0 the sum is there already
        whole = jnp.maximum(running.top + jnp.log1p(running.mass), NEVER)
        everything = jax.lax.cond(asked.drawn, summed, lambda: whole)
    return dataclasses.replace(running, plain=own, all_plain=everything)


def log_marginal(
    features: Float[Array, "B C D"],
    head: Float[Any, "D V"],
    vocabulary: Vocabulary,
    sampling: Sampling,
    draws: Draws,
    token: Int[Array, "B C"],
    *,
    mesh: Mesh | None = None,
) -> Float[Array, "B C"]:
    """The log-probability of these tokens in softmax(logits / temperature), the temperature being 1 where it is 0."""
    total, logit = _drawn(Asked.of(features, vocabulary, sampling, draws), head, token, mesh)
    return logit - total


def _drawn(
    asked: Asked, head: Float[Any, "D V"], token: Int[Array, "B C"], mesh: Mesh | None
) -> tuple[Float[Array, "B C"], Float[Array, "B C"]]:
    """Of the logits over the temperature: logsumexp, and a token's own."""

    def summary(tile: Tile) -> tuple[Float[Array, "B C"], Float[Array, "B C"]]:
        # Of the tile's own: over a mesh those outside are laid otherwise.
        logits = jnp.maximum(tile.plain / tile.asked.divisor, NEVER)
        own = jnp.where(tile.ids[None, None] == tile.asked.named, logits, NEVER)
        return jax.nn.logsumexp(logits, axis=-1), jnp.max(own, axis=-1)

    plain = dataclasses.replace(asked, top_p=None, top_k=None, push=None, named=token[..., None])
    return over_tiles(plain, head, summary, lambda a, b: (jnp.logaddexp(a[0], b[0]), jnp.maximum(a[1], b[1])), mesh)


def log_prob_of(
    features: Float[Array, "B C D"], head: Float[Any, "D V"], token: Int[Array, "B C"], *, size: int, forbidden: Any
) -> Float[Array, "B C"]:
    """Log-softmax of these tokens without the ids `forbidden` and those from `size` on, float32, differentiable: a tile
    of the vocabulary is held at a time, forwards and backwards.
    """
    columns = head.shape[1]
    width = min(TILE, columns)

    @jax.checkpoint
    def one(
        index: Int[Array, ""], features: Float[Array, "B C D"], head: Float[Any, "D V"]
    ) -> tuple[Float[Array, "B C"], Float[Array, "B C"]]:
        first = jnp.minimum(index * width, columns - width)  # the last tile is moved back; what it shares has no mass
        ids = first + jnp.arange(width, dtype=jnp.int32)
        allowed = (ids >= index * width) & (ids < size) & ~jnp.isin(ids, jnp.asarray(forbidden, jnp.int32))
        part = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, first, width, axis=1), head)
        logits = jnp.matmul(features, full(part, features.dtype), preferred_element_type=jnp.float32)
        own = jnp.where(allowed[None, None] & (ids[None, None] == token[..., None]), logits, 0.0)
        mass = jax.nn.logsumexp(jnp.where(allowed[None, None], logits, NEVER), axis=-1)
        return mass, jnp.sum(own, axis=-1)

    def step(carry: Any, index: Int[Array, ""]) -> tuple[Any, None]:
        mass, own = one(index, features, head)
        return (jnp.logaddexp(carry[0], mass), carry[1] + own), None

    tiles = jnp.arange(1, -(-columns // width), dtype=jnp.int32)
    (mass, own), _ = jax.lax.scan(step, one(jnp.int32(0), features, head), tiles)
    return own - mass


@pytree
class Ends:
    """What tells whether the candidate ends a text, merged over the tiles so far; n ids do.

    Attributes:
        keys, logits: of each of these ids: its sort key (the logit, plus noise at temperature > 0) and its logit.
        before, after: highest sort key of the other ids that are lower than each of these, and higher.
        top, mass: highest logit of the others, and the sum of their exp(l - top).
    """

    keys: Float[Array, "B C n"]
    logits: Float[Array, "B C n"]
    before: Float[Array, "B C n"]
    after: Float[Array, "B C n"]
    top: Float[Array, "B C"]
    mass: Float[Array, "B C"]


def text_ends(
    features: Float[Array, "B C D"],
    head: Float[Any, "D V"],
    vocabulary: Vocabulary,
    sampling: Sampling,
    draws: Draws,
    ends: tuple[int, ...],
    *,
    push: Push | None = None,
    mesh: Mesh | None = None,
) -> tuple[Bool[Array, "B C"], Float[Array, "B C"]]:
    """Where the candidate is one of the ids `ends`, in ascending order, and its log-odds there, as in `Belief`;
    elsewhere NEVER.

    For many positions at once: it goes over a tile's logits twice, and `believe` several times as often.
    """

    def summary(tile: Tile) -> Ends:
        keys = jax.lax.cond(tile.asked.drawn, tile.noisy, lambda: tile.logits)
        at = jnp.asarray(ends, jnp.int32) - tile.ids[0]
        inside = (at >= 0) & (at < tile.ids.shape[0])
        at, other = jnp.clip(at, 0, tile.ids.shape[0] - 1), ~jnp.isin(tile.ids, jnp.asarray(ends, jnp.int32))
        logits = jnp.where(other[None, None], tile.logits, NEVER)
        top = jnp.max(logits, axis=-1)

        def best(among: Bool[Array, " v"]) -> Float[Array, "B C"]:
            return jnp.max(jnp.where((other & among)[None, None], keys, NEVER), axis=-1)

        return Ends(
            keys=jnp.where(inside[None, None], keys[..., at], NEVER),
            logits=jnp.where(inside[None, None], tile.logits[..., at], NEVER),
            before=jnp.stack([best(tile.ids < end) for end in ends], axis=-1),
            after=jnp.stack([best(tile.ids > end) for end in ends], axis=-1),
            top=top,
            mass=jnp.sum(jnp.exp(logits - top[..., None]), axis=-1),
        )

    if not ends:
        return jnp.zeros(features.shape[:2], bool), jnp.full(features.shape[:2], NEVER, jnp.float32)
    asked = Asked.of(features, vocabulary, sampling, draws, push)
    found = over_tiles(asked, head, summary, _merge_ends, mesh)
    best = jnp.argmax(found.keys, axis=-1, keepdims=True)
    key, logit, before, after = (
        jnp.take_along_axis(x, best, axis=-1)[..., 0] for x in (found.keys, found.logits, found.before, found.after)
    )
    others = jnp.where(jnp.arange(len(ends))[None, None] == best, NEVER, found.logits)
    log_odds = logit - jnp.logaddexp(found.top + jnp.log(found.mass), jax.nn.logsumexp(others, axis=-1))
    sound = jnp.isfinite(log_odds) & (logit > NEVER)
    foreseen = sound & (key > before) & (key >= after)  # on equal keys the lower id is the candidate
    last = jnp.isin(jnp.asarray(ends)[best[..., 0]], jnp.asarray(vocabulary.deferred, jnp.int32))
    return foreseen, jnp.where(foreseen & ~last, log_odds, NEVER)


def _merge_ends(a: Ends, b: Ends) -> Ends:
    top = jnp.maximum(a.top, b.top)
    return Ends(
        keys=jnp.maximum(a.keys, b.keys),
        logits=jnp.maximum(a.logits, b.logits),
        before=jnp.maximum(a.before, b.before),
        after=jnp.maximum(a.after, b.after),
        top=top,
        mass=a.mass * jnp.exp(a.top - top) + b.mass * jnp.exp(b.top - top),
    )
