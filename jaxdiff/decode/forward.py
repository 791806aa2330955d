"""One forward: from the canvas to what is believed of each row's block, and, where a stopper asks, of the whole canvas.

canvas [B L] -> its first n columns, n on the ladder -> model.features [B n D]
                of them the block [B W D] -> beliefs -> Score
                of them all       [B n D] -> beliefs -> Tail
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdiff.decode.score import NEVER, Beliefs, beliefs
from jaxdiff.decode.state import Settings, State, fold, take
from jaxdiff.types import Model, Params, Score, Tail


def read(
    model: Model,
    params: Params,
    settings: Settings,
    state: State,
    open_: Bool[Array, "B L"],
    start: Int[Array, " B"],
    block_step: Int[Array, " B"],
) -> tuple[Score, Tail | None]:
    """The score of each row's block, and of every open position whether its candidate is end-of-text.

    Columns right of the furthest end are attended to by nobody: the forward runs on the shortest rung that holds it,
    and the block that it lies in.
    """

    def on(length: int) -> Callable[[], tuple[Beliefs, Float[Array, "B W D"], Tail | None]]:
        return lambda: _read(model, params, settings, state, open_, start, length)

    length = state.canvas.shape[1]
    rungs = tuple(rung for rung in settings.ladder if rung + settings.overhang < length)
    if rungs:
        furthest = jnp.max(jnp.where(jnp.any(open_, axis=1), state.end, 0))  # of the live rows
        rung = sum((furthest > rung).astype(jnp.int32) for rung in rungs)
        belief, hidden, tail = jax.lax.switch(rung, [on(n + settings.overhang) for n in rungs] + [on(length)])
    else:
        belief, hidden, tail = on(length)()
    score = Score(
        **{field.name: getattr(belief, field.name) for field in dataclasses.fields(belief)},
        hidden=hidden,
        masked=take(state.canvas, start, settings.block_length) == model.config.mask_token_id,
        eligible=take(open_, start, settings.block_length),
        canvas=state.canvas,
        start=start,
        origin=state.origin,
        block_step=block_step,
        row_step=state.row_step,
    )
    return score, tail


def _read(
    model: Model,
    params: Params,
    settings: Settings,
    state: State,
    open_: Bool[Array, "B L"],
    start: Int[Array, " B"],
    length: int,
) -> tuple[Beliefs, Float[Array, "B W D"], Tail | None]:
    """The forward over the first `length` columns."""
    config = model.config
    column = jnp.arange(length, dtype=jnp.int32)[None]
    positions = jnp.maximum(column - state.origin[:, None], 0)
    valid = (column >= state.origin[:, None]) & (column < state.end[:, None])
    features = _features(model, params, settings, state, positions, valid)
    head, keys = model.head(params), fold(fold(state.keys, state.row_step), 0)

    def believe(hidden: Float[Array, "B w D"], at: Int[Array, "B w"]) -> Beliefs:
        return beliefs(
            hidden,
            head,
            vocabulary=config.vocab_size,
            mesh=settings.mesh,
            forbidden=(config.mask_token_id, *((config.eos_token_id,) if settings.forbid_eos else ())),
            deferred=config.eos_ids if settings.defer_eos else (),
            temperature=settings.temperature,
            keys=keys,
            positions=at,
            top_p=settings.top_p,
            top_k=settings.top_k,
            tempered=model.tempered,
        )

    hidden = take(features, start, settings.block_length)
    belief = believe(hidden, take(positions, start, settings.block_length))
    if not settings.stop.wants_tail:
        return belief, hidden, None
    everywhere = believe(features, positions)
    beyond = ((0, 0), (0, state.canvas.shape[1] - length))
    ends = open_[:, :length] & (everywhere.token == config.eos_token_id)
    tail = Tail(
        ends=jnp.pad(ends, beyond),
        log_odds=jnp.pad(jnp.where(ends, everywhere.log_odds, NEVER), beyond, constant_values=NEVER),
    )
    return belief, hidden, tail


def _features(
    model: Model,
    params: Params,
    settings: Settings,
    state: State,
    positions: Int[Array, "B n"],
    valid: Bool[Array, "B n"],
) -> Float[Array, "B n D"]:
    """One forward, or with guidance the pair of LLaDA's `generate.py`: un + (scale + 1) (cond - un).

    The unconditional copy has all that was given masked. The head is linear, so guiding the features guides the
    logits, and no second [B, W, V] exists.
    """
    canvas, given = state.canvas[:, : positions.shape[1]], state.given[:, : positions.shape[1]]
    if settings.guidance is None:
        return model.features(params, canvas, positions, valid)
    blind = jnp.where(given & valid, model.config.mask_token_id, canvas)
    twice = [jnp.concatenate([x, x]) for x in (positions, valid)]
    both = model.features(params, jnp.concatenate([canvas, blind]), *twice)
    seeing, unseeing = (half.astype(jnp.float32) for half in jnp.split(both, 2))
    scale = jnp.broadcast_to(jnp.asarray(settings.guidance), (canvas.shape[0],))[:, None, None]
    return (unseeing + (scale + 1.0) * (seeing - unseeing)).astype(both.dtype)
