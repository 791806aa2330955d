"""The full pass of a step: the one that scores each row's block.

without a cache   canvas [B L] -> its first n columns, n on the ladder -> features [B W D] of the block,
                  or of all n for a stopper that asks
with one          rows that are due: the same, into the KV cache; the others: a window [B T] over the KV cache
of the features   the block [B W D] -> Belief -> Score;  all of them [B T D] -> Belief -> Tail
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdiff.decode.passes import StepPasses
from jaxdiff.decode.state import keep
from jaxdiff.parallel.mesh import platform
from jaxdiff.pytree import pytree
from jaxdiff.types import KV, NEVER, KVCache, Score, Tail, is_text_end
from jaxdiff.windows import put, take


@pytree
class Reading:
    """What passes gave so far: the block's features, what the stopper asked for, keys and values, and their work."""

    hidden: Float[Array, "B W D"]
    tail: Tail | None
    work: Float[Array, " B"]
    kv: KVCache | None


@dataclasses.dataclass(frozen=True)
class FullPass(StepPasses):
    """The full pass of a step; `open_`: positions that the step may commit."""

    open_: Bool[Array, "B L"]

    def run(self, live: Bool[Array, " B"]) -> tuple[Score, Reading]:
        """The step's one full pass: the score of each row's block, and what else it gave.

        Where only some rows are due for a refresh, the others take their ordinary pass in the same step: one over the
        canvas for those, one over the window for these. Neither touches the other's rows, or one that is done.
        """
        if self.setup.decoder.cache.window == "canvas":
            reading = self._over_canvas(live, self._nothing())
        else:
            due = live & self.setup.decoder.cache.due(self.place)
            others = live & ~due
            reading = jax.lax.cond(jnp.any(due), lambda r: self._over_canvas(due, r), lambda r: r, self._nothing())
            reading = jax.lax.cond(jnp.any(others), lambda r: self._over_window(others, r), lambda r: r, reading)
        return self._score(reading.hidden), reading

    def _over_canvas(self, rows: Bool[Array, " B"], before: Reading) -> Reading:
        """A pass over as much of the canvas as holds these rows' ends, and the blocks that these lie in."""
        overhang, longest = self.setup.layout.overhang, self.state.given.shape[1]
        rungs = [rung + overhang for rung in self.setup.layout.ladder if rung + overhang < longest]

        def on(length: int) -> Callable[[], Reading]:
            fresh = jnp.broadcast_to(rows[:, None], (rows.shape[0], length))
            return lambda: self._pass(rows, before, None, fresh, columns=length, kept=True)

        needed = jnp.max(jnp.where(rows, self.state.end, 0)) + overhang
        reading = _shortest(on, (*rungs, longest), needed)
        return self._charged(reading, rows, self.state.end - self.state.rows.origin)

    def _over_window(self, rows: Bool[Array, " B"], before: Reading) -> Reading:
        """A pass over each row's window. A shifted model reads a window's first token from the column before it."""
        cache, columns = self.setup.decoder.cache, self.state.given.shape[1]
        lead = int(self.setup.model.shifted)
        block = cache.window == "block"
        reach = cache.reach(self.place)
        stop = reach + self.setup.layout.block_length if block else jnp.full_like(reach, columns)
        # What nobody reads later is not written where a TPU would hold a second KV cache for it.
        kept = block or cache.keeps or KV in self.setup.decoder.fill.needs or platform() != "tpu"

        def on(span: int) -> Callable[[], Reading]:
            length = min(span + lead, columns)
            start = jnp.clip(reach - lead, 0, columns - length)
            at = start[:, None] + jnp.arange(length, dtype=jnp.int32)[None]
            fresh = rows[:, None] & (at >= reach[:, None] - lead) & (at < stop[:, None])
            return lambda: self._pass(rows, before, start, fresh, columns=columns, kept=kept)

        reading = _shortest(on, self.setup.layout.spans, jnp.max(jnp.where(rows, self.state.end - reach, 0)))
        origin = self.state.rows.origin
        return self._charged(reading, rows, jnp.minimum(stop, self.state.end) - jnp.maximum(reach - lead, origin))

    def _pass(
        self,
        rows: Bool[Array, " B"],
        before: Reading,
        start: Int[Array, " B"] | None,
        fresh: Bool[Array, "B T"],
        *,
        columns: int,
        kept: bool,
    ) -> Reading:
        """One pass over a window of the first `columns` columns; `before` stays in rows that are not these."""
        length, stop = fresh.shape[1], self.setup.decoder.stop
        at = None if start is None or length == columns else start
        first = jnp.zeros_like(self.place.start) if at is None else at
        tokens, given = self.state.rows.canvas[:, :columns], self.state.given[:, :columns]
        if at is not None:
            tokens, given = take(tokens, at, length), take(given, at, length)
        inputs = self.inputs(tokens, at, columns, fresh, given=given, store=kept)
        block = self.block(first)
        alone = length > self.setup.layout.block_length + int(self.setup.model.shifted) and not stop.wants_tail
        features, kv = self.setup.model.apply(self.setup.params, inputs, before.kv, at, block if alone else None)
        hidden = features if alone else take(features, block.start, block.count)
        tail = self._tail(features, first) if stop.wants_tail else None
        new = Reading(hidden=hidden, tail=tail, work=before.work, kv=None)
        if self.setup.decoder.cache.window != "canvas":
            new = keep(rows, new, dataclasses.replace(before, kv=None))
        return dataclasses.replace(new, kv=kv)

    def _score(self, hidden: Float[Array, "B W D"]) -> Score:
        state, place, window = self.state, self.place, self.setup.layout.block_length
        canvas, mask = state.rows.canvas, self.setup.model.config.mask_token_id
        standing = take(canvas, place.start, window)
        masked = standing == mask
        wanted = None if state.rows.reference is None else take(state.rows.reference, place.start, window)
        named = jnp.stack([standing] if wanted is None else [standing, wanted], axis=-1)
        belief = self.believe(hidden, self.columns(), 0, named)
        # Past the reference's end, in an overhang, any candidate will do.
        reference = None if wanted is None else jnp.where(wanted == mask, belief.token, wanted)
        return Score(
            **vars(belief),
            hidden=hidden,
            masked=masked,
            eligible=take(self.open_, place.start, window),
            editable=~masked & ~take(state.given, place.start, window) & (self.columns() < state.end[:, None]),
            canvas=canvas,
            start=place.start,
            origin=state.rows.origin,
            block_step=place.block_step,
            row_step=state.row_step,
            reference=reference,
        )

    def _tail(self, features: Float[Array, "B T D"], start: Int[Array, " B"]) -> Tail:
        length = features.shape[1]
        columns = start[:, None] + jnp.arange(length, dtype=jnp.int32)[None]
        everywhere = self.believe(features, columns, 0)
        ends = take(self.open_, start, length) & is_text_end(everywhere.token, self.setup.model.config)
        log_odds = jnp.where(ends, everywhere.log_odds, NEVER)
        nowhere = self._no_tail()
        return Tail(ends=put(nowhere.ends, ends, start), log_odds=put(nowhere.log_odds, log_odds, start))

    def _nothing(self) -> Reading:
        """What is known before any pass of the step."""
        config, rows = self.setup.model.config, self.place.start.shape[0]
        hidden = jnp.zeros((rows, self.setup.layout.block_length, config.d_model), jnp.dtype(config.dtype))
        tail = self._no_tail() if self.setup.decoder.stop.wants_tail else None
        return Reading(hidden=hidden, tail=tail, work=jnp.zeros((rows,), jnp.float32), kv=self.kv)

    def _no_tail(self) -> Tail:
        shape = self.state.given.shape
        return Tail(ends=jnp.zeros(shape, bool), log_odds=jnp.full(shape, NEVER, jnp.float32))

    def _charged(self, reading: Reading, rows: Bool[Array, " B"], tokens: Int[Array, " B"]) -> Reading:
        """The reading with the work of one more pass over so many tokens in these rows."""
        return dataclasses.replace(reading, work=reading.work + jnp.where(rows, self.work(tokens), 0.0))


def _shortest(on: Callable[[int], Callable[[], Reading]], lengths: tuple[int, ...], needed: Int[Array, ""]) -> Reading:
    """On the shortest of the lengths that holds what is needed; each is compiled."""
    if len(lengths) == 1:
        return on(lengths[0])()
    rung = sum((needed > length).astype(jnp.int32) for length in lengths[:-1])
    return jax.lax.switch(rung, [on(length) for length in lengths])
