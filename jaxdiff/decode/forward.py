"""One step's forwards: from the canvas to what is believed of each row's block, and, where a stopper asks, of the rest.

without a cache   canvas [B L] -> its first n columns, n on the ladder -> features [B W D] of the block,
                  or of all n for a stopper that asks
with one          rows that are due: the same, into the memory; the others: a window [B T] over the memory
of the features   the block [B W D] -> beliefs -> Score;  all of them [B T D] -> beliefs -> Tail
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdiff.decode.cache import Place
from jaxdiff.decode.score import NEVER, Beliefs, beliefs
from jaxdiff.decode.state import Settings, State
from jaxdiff.types import Memory, Model, Params, Remembering, Score, Span, Tail, Window, pytree
from jaxdiff.windows import put, take


@pytree
class Reading:
    """What forwards gave: the block's features, what the stopper asked for, keys and values."""

    hidden: Float[Array, "B W D"]
    tail: Tail | None
    memory: Memory | None


@dataclasses.dataclass(frozen=True)
class Forward:
    """The forwards of one step, where each row stands in its block."""

    model: Model
    params: Params
    settings: Settings
    state: State
    live: Bool[Array, " B"]  # rows that take part
    open_: Bool[Array, "B L"]  # positions that this step may commit
    place: Place

    def read(self) -> tuple[Score, Tail | None, Memory | None]:
        """The score of each row's block; of every open position whether its candidate is end-of-text; the new memory.

        Where only some rows are due for a rebuild, the others take their ordinary step in the same iteration: a forward
        over the canvas for those, one over the window for these. Neither touches the other's rows, or one that is done.
        """
        cache, state, window = self.settings.cache, self.state, self.settings.block_length
        start = self.place.start
        if cache.window == "canvas":
            reading = self._over_canvas(self.live, None)
        else:
            due = self.live & cache.due(self.place)
            others = self.live & ~due
            reading = jax.lax.cond(jnp.any(due), lambda r: self._over_canvas(due, r), lambda r: r, self._blank())
            reading = jax.lax.cond(jnp.any(others), lambda r: self._over_window(others, r), lambda r: r, reading)
        column = start[:, None] + jnp.arange(window, dtype=jnp.int32)[None]
        belief = self._believe(reading.hidden, jnp.maximum(column - state.origin[:, None], 0))
        score = Score(
            **{field.name: getattr(belief, field.name) for field in dataclasses.fields(belief)},
            hidden=reading.hidden,
            masked=take(state.canvas, start, window) == self.model.config.mask_token_id,
            eligible=take(self.open_, start, window),
            canvas=state.canvas,
            start=start,
            origin=state.origin,
            block_step=self.place.block_step,
            row_step=state.row_step,
        )
        return score, reading.tail, reading.memory

    def _over_canvas(self, rows: Bool[Array, " B"], before: Reading | None) -> Reading:
        """A forward over as much of the canvas as holds these rows' ends, and the blocks that these lie in."""
        zero = jnp.zeros_like(self.place.start)

        def on(length: int) -> Callable[[], Reading]:
            fresh = jnp.broadcast_to(rows[:, None], (rows.shape[0], length))
            return lambda: self._pass(rows, before, Window(start=zero, fresh=fresh), columns=length)

        overhang, longest = self.settings.overhang, self.state.canvas.shape[1]
        rungs = [rung + overhang for rung in self.settings.ladder if rung + overhang < longest]
        return _shortest(on, (*rungs, longest), jnp.max(jnp.where(rows, self.state.end, 0)) + overhang)

    def _over_window(self, rows: Bool[Array, " B"], before: Reading) -> Reading:
        """A forward over each row's window. A shifted model reads a window's first token from the column before it."""
        columns, lead = self.state.canvas.shape[1], int(self.model.shifted)
        block = self.settings.cache.window == "block"
        reach = self.settings.cache.reach(self.place)
        stop = reach + self.settings.block_length if block else jnp.full_like(reach, columns)

        def on(span: int) -> Callable[[], Reading]:
            length = min(span + lead, columns)
            start = jnp.clip(reach - lead, 0, columns - length)
            at = start[:, None] + jnp.arange(length, dtype=jnp.int32)[None]
            fresh = rows[:, None] & (at >= reach[:, None] - lead) & (at < stop[:, None])
            # A block costs nothing to write, and a TPU holds a second memory where it is not.
            kept = block or self.settings.cache.keeps
            return lambda: self._pass(rows, before, Window(start=start, fresh=fresh, kept=kept), columns=columns)

        return _shortest(on, self.settings.spans, jnp.max(jnp.where(rows, self.state.end - reach, 0)))

    def _pass(self, rows: Bool[Array, " B"], before: Reading | None, window: Window, *, columns: int) -> Reading:
        """One forward over a window of the first `columns` columns; `before` stays in rows that are not these."""
        state, settings, length = self.state, self.settings, window.fresh.shape[1]
        column = jnp.arange(columns, dtype=jnp.int32)[None]
        positions = jnp.maximum(column - state.origin[:, None], 0)
        valid = (column >= state.origin[:, None]) & (column < state.end[:, None])
        past = None if before is None else before.memory
        block, tail = Span(self.place.start - window.start, settings.block_length), None
        alone = length > settings.block_length + int(self.model.shifted) and not settings.stop.wants_tail
        features, memory = self._features(positions, valid, window, past, block if alone else None)
        hidden = features if alone else take(features, block.start, block.count)
        if settings.stop.wants_tail:
            tail = self._tail(features, take(positions, window.start, length), window.start)
        reading = Reading(hidden=hidden, tail=tail, memory=None)
        if before is None:
            return reading

        def merged(new: Array, old: Array) -> Array:
            return jnp.where(rows.reshape(-1, *[1] * (new.ndim - 1)), new, old)

        others = dataclasses.replace(before, memory=None)
        return dataclasses.replace(jax.tree.map(merged, reading, others), memory=memory)

    def _features(
        self,
        positions: Int[Array, "B n"],
        valid: Bool[Array, "B n"],
        window: Window,
        past: Memory | None,
        read: Span | None,
    ) -> tuple[Float[Array, "B r D"], Memory | None]:
        """Of all tokens, or of those in `read`.

        One forward, or with guidance the pair of LLaDA's `generate.py`: un + (scale + 1) (cond - un).
        The unconditional copy has all that was given masked, and keys and values of its own. The head is linear, so
        guiding the features guides the logits, and no second [B, W, V] exists.
        """
        columns, length, guidance = valid.shape[1], window.fresh.shape[1], self.settings.guidance
        canvas, given = self.state.canvas[:, :columns], self.state.given[:, :columns]
        prompt = jnp.maximum(self.settings.first - self.state.origin, 0)
        inputs: tuple[Any, ...] = (canvas, positions, valid, prompt, window, read)
        if guidance is not None:
            blind = jnp.where(given & valid, self.model.config.mask_token_id, canvas)
            inputs = jax.tree.map(lambda x, y: jnp.concatenate([x, y]), inputs, (blind, *inputs[1:]))
        canvas, positions, valid, prompt, window, read = inputs
        if not isinstance(self.model, Remembering):
            features, kept = self.model.features(self.params, canvas, positions, valid), None
            features = features if read is None else take(features, read.start, read.count)
        elif past is None:
            features, kept = self.model.features(self.params, canvas, positions, valid, prompt, read), None
        else:
            tokens = canvas if length == columns else take(canvas, window.start, length)
            features, kept = self.model.recall(self.params, tokens, positions, valid, window, past, prompt, read)
        if guidance is None:
            return features, kept
        seeing, unseeing = (half.astype(jnp.float32) for half in jnp.split(features, 2))
        scale = jnp.broadcast_to(jnp.asarray(guidance), (seeing.shape[0],))[:, None, None]
        return (unseeing + (scale + 1.0) * (seeing - unseeing)).astype(features.dtype), kept

    def _tail(self, features: Float[Array, "B T D"], positions: Int[Array, "B T"], start: Int[Array, " B"]) -> Tail:
        everywhere, length = self._believe(features, positions), features.shape[1]
        ends = take(self.open_, start, length) & (everywhere.token == self.model.config.eos_token_id)
        log_odds = jnp.where(ends, everywhere.log_odds, NEVER)
        nowhere = self._no_tail()
        return Tail(ends=put(nowhere.ends, ends, start), log_odds=put(nowhere.log_odds, log_odds, start))

    def _believe(self, hidden: Float[Array, "B w D"], positions: Int[Array, "B w"]) -> Beliefs:
        config, settings, state = self.model.config, self.settings, self.state
        return beliefs(
            hidden,
            self.model.head(self.params),
            vocabulary=config.vocab_size,
            mesh=settings.mesh,
            forbidden=(config.mask_token_id, *((config.eos_token_id,) if settings.forbid_eos else ())),
            deferred=config.eos_ids if settings.defer_eos else (),
            temperature=settings.temperature,
            keys=state.keys,
            step=state.row_step,
            positions=positions,
            top_p=settings.top_p,
            top_k=settings.top_k,
            tempered=self.model.tempered,
        )

    def _blank(self) -> Reading:
        """What is known before any forward of the step."""
        config, rows = self.model.config, self.place.start.shape[0]
        hidden = jnp.zeros((rows, self.settings.block_length, config.d_model), jnp.dtype(config.dtype))
        tail = self._no_tail() if self.settings.stop.wants_tail else None
        return Reading(hidden=hidden, tail=tail, memory=self.state.memory)

    def _no_tail(self) -> Tail:
        shape = self.state.canvas.shape
        return Tail(ends=jnp.zeros(shape, bool), log_odds=jnp.full(shape, NEVER, jnp.float32))


def _shortest(on: Callable[[int], Callable[[], Reading]], lengths: tuple[int, ...], needed: Int[Array, ""]) -> Reading:
    """On the shortest of the lengths that holds what is needed; each is compiled."""
    if len(lengths) == 1:
        return on(lengths[0])()
    rung = sum((needed > length).astype(jnp.int32) for length in lengths[:-1])
    return jax.lax.switch(rung, [on(length) for length in lengths])
