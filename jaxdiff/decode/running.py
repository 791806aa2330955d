"""What is kept of the vocabulary while it is gone over tile by tile: one tile's summary, and the merge of two."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdiff.pytree import pytree
from jaxdiff.types import NEVER, Belief


@pytree
class Running:
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
    plain: (
        Float[Array, "B W"] | None
    )  # the candidate's logit before push, temperature and cuts; None: the same as `logit`
    all_plain: Float[Array, "B W"] | None  # logsumexp of all before these; None: that of what is above
    named: Float[Array, "B W n"]  # plain logits of the ids that were asked for


def summarise(logits: Float[Array, "B W v"], keys: Float[Array, "B W v"], ids: Int[Array, " v"]) -> Running:
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
    return Running(
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


def merge(a: Running, b: Running) -> Running:
    """`a` lies left of `b`: on equal keys the lower id stays the candidate, as in an argmax over all.

    So it does where its key is no number: ids of padding, which lie right of all others, are never candidates.
    """
    first: Bool[Array, "B W"] = ~(a.key < b.key)

    def winner(x: Any, y: Any) -> Any:
        return jnp.where(first, x, y)

    loser_key, loser_logit = winner(b.key, a.key), winner(b.logit, a.logit)
    top = jnp.maximum(a.top, b.top)
    scale_a, scale_b = jnp.exp(a.top - top), jnp.exp(b.top - top)
    return Running(
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
        all_plain=None if a.all_plain is None or b.all_plain is None else jnp.logaddexp(a.all_plain, b.all_plain),
        named=jnp.maximum(a.named, b.named),
    )


def finish(r: Running, deferred: tuple[int, ...], stand_in: int) -> Belief:
    """What the merged tiles say. `deferred`: ids that go last; `stand_in`: an id that may be predicted.

    Where a logit was NaN or +inf, or no id that may be predicted has mass, the belief is no number: `log_odds` (but of
    what goes last) and `log_prob` are then NaN, and the candidate is one that may be predicted all the same.
    """
    without_mass = r.logit <= NEVER
    log_odds = r.logit - r.rest
    all_mass = jnp.logaddexp(r.logit, r.rest)
    token = jnp.where(without_mass, stand_in, r.token)
    last = jnp.zeros(token.shape, bool)
    for end in deferred:
        last |= token == end
    if r.plain is None or r.all_plain is None:
        whole, log_prob = all_mass, jax.nn.log_sigmoid(log_odds)
    else:
        whole, log_prob = r.all_plain, jnp.minimum(r.plain - r.all_plain, 0.0)
    sound = jnp.isfinite(log_odds) & jnp.isfinite(log_prob) & ~without_mass
    log_odds, log_prob = jnp.where(sound, log_odds, jnp.nan), jnp.where(sound, log_prob, jnp.nan)
    return Belief(
        token=token,
        prob=jnp.where(last, 0.0, jax.nn.sigmoid(log_odds)),
        log_odds=jnp.where(last, NEVER, log_odds),
        runner_up=jnp.where(last, 1.0, jnp.exp(r.best_other - all_mass)),
        entropy=jnp.where(last, -NEVER, jnp.log1p(r.mass) - r.moment / (1.0 + r.mass)),
        gap=r.key - r.next_key,
        log_prob=log_prob,
        named=jnp.maximum(r.named - whole[..., None], NEVER),
    )
