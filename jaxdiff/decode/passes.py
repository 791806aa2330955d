"""The passes of one step: the full pass that scores each row's block, and the cheap ones that a fill may run after it.

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

from jaxdiff.decode.decoder import Decoder
from jaxdiff.decode.score import Draws, Vocabulary, believe
from jaxdiff.decode.state import Layout, State, keep
from jaxdiff.parallel import platform
from jaxdiff.pytree import pytree
from jaxdiff.types import KV, NEVER, Belief, Inputs, KVCache, Model, Params, Place, Score, Span, Tail
from jaxdiff.windows import put, take


@pytree
class Reading:
    """What passes gave so far: the block's features, what the stopper asked for, keys and values, and their work."""

    hidden: Float[Array, "B W D"]
    tail: Tail | None
    work: Float[Array, " B"]
    kv: KVCache | None


@dataclasses.dataclass(frozen=True)
class StepPasses:
    """The passes of one step, where each row stands in its block; also what a fill gets (`jaxdiff.types.Passes`)."""

    model: Model
    params: Params
    layout: Layout
    decoder: Decoder
    state: State
    open_: Bool[Array, "B L"]  # positions that this step may commit
    place: Place
    kv: KVCache | None  # of the state, or after the full pass

    def full(self, live: Bool[Array, " B"]) -> tuple[Score, Reading]:
        """The step's one full pass: the score of each row's block, and what else it gave.

        Where only some rows are due for a refresh, the others take their ordinary pass in the same step: one over the
        canvas for those, one over the window for these. Neither touches the other's rows, or one that is done.
        """
        if self.decoder.cache.window == "canvas":
            reading = self._over_canvas(live, self._nothing())
        else:
            due = live & self.decoder.cache.due(self.place)
            others = live & ~due
            reading = jax.lax.cond(jnp.any(due), lambda r: self._over_canvas(due, r), lambda r: r, self._nothing())
            reading = jax.lax.cond(jnp.any(others), lambda r: self._over_window(others, r), lambda r: r, reading)
        return self._score(reading.hidden), reading

    # The cheap passes of a fill

    def canvas(self, canvas: Int[Array, "B L"], draw: int | Int[Array, ""]) -> tuple[Belief, Float[Array, " B"]]:
        """As `Passes.canvas`."""
        inputs = self._inputs(canvas, None, canvas.shape[1], jnp.ones(canvas.shape, bool), given=self.state.given)
        features, _ = self.model.apply(self.params, inputs, None, None, self._block(jnp.zeros_like(self.place.start)))
        return self._believe(features, self._columns(), draw), self._work(self.state.end - self.state.rows.origin)

    def window(self, tokens: Int[Array, "B W"], draw: int | Int[Array, ""]) -> tuple[Belief, Float[Array, " B"]]:
        """As `Passes.window`."""
        return self.group(tokens, self._columns(), draw)

    def group(
        self, tokens: Int[Array, "B C"], columns: Int[Array, "B C"], draw: int | Int[Array, ""]
    ) -> tuple[Belief, Float[Array, " B"]]:
        """As `Passes.group`. A shifted model is fed the columns before these too, with the tokens that stand there."""
        fed, at, read = tokens, columns, None
        if self.model.shifted:
            fed, at, read = self._with_the_columns_before(tokens, columns)
        given = jnp.take_along_axis(self.state.given, at, axis=1)
        inputs = self._inputs(fed, at, self.state.given.shape[1], jnp.ones(fed.shape, bool), given=given, store=False)
        features, _ = self.model.apply(self.params, inputs, self.kv, at, read)
        valid = (columns >= self.state.rows.origin[:, None]) & (columns < self.state.end[:, None])
        cost = self._work((1 + int(self.model.shifted)) * jnp.sum(valid, axis=1, dtype=jnp.int32))
        return self._believe(features, columns, draw), cost

    def _with_the_columns_before(
        self, tokens: Int[Array, "B C"], columns: Int[Array, "B C"]
    ) -> tuple[Int[Array, "B c"], Int[Array, "B c"], Span]:
        """Tokens and columns with one more behind each: the column before, with its token in this group or the canvas.

        A column that is in the group already, or none, is fed twice the same: both give the same keys and values.
        """
        before = jnp.maximum(columns - 1, 0)
        same = before[:, :, None] == columns[:, None, :]
        inside = jnp.take_along_axis(tokens, jnp.argmax(same, axis=2), axis=1)
        there = jnp.take_along_axis(self.state.rows.canvas, before, axis=1)
        tokens_before = jnp.where(jnp.any(same, axis=2), inside, there)
        start = jnp.zeros_like(self.place.start)
        both = jnp.concatenate([tokens, tokens_before], axis=1), jnp.concatenate([columns, before], axis=1)
        return *both, Span(start, columns.shape[1])

    # The full pass

    def _over_canvas(self, rows: Bool[Array, " B"], before: Reading) -> Reading:
        """A pass over as much of the canvas as holds these rows' ends, and the blocks that these lie in."""
        overhang, longest = self.layout.overhang, self.state.given.shape[1]
        rungs = [rung + overhang for rung in self.layout.ladder if rung + overhang < longest]

        def on(length: int) -> Callable[[], Reading]:
            fresh = jnp.broadcast_to(rows[:, None], (rows.shape[0], length))
            return lambda: self._pass(rows, before, None, fresh, columns=length, kept=True)

        needed = jnp.max(jnp.where(rows, self.state.end, 0)) + overhang
        reading = _shortest(on, (*rungs, longest), needed)
        return self._charged(reading, rows, self.state.end - self.state.rows.origin)

    def _over_window(self, rows: Bool[Array, " B"], before: Reading) -> Reading:
        """A pass over each row's window. A shifted model reads a window's first token from the column before it."""
        cache, columns, lead = self.decoder.cache, self.state.given.shape[1], int(self.model.shifted)
        block = cache.window == "block"
        reach = cache.reach(self.place)
        stop = reach + self.layout.block_length if block else jnp.full_like(reach, columns)
        # What no later step reads is not written where a TPU would hold a second KV cache for it; a block costs nothing.
        kept = block or cache.keeps or platform() != "tpu"

        def on(span: int) -> Callable[[], Reading]:
            length = min(span + lead, columns)
            start = jnp.clip(reach - lead, 0, columns - length)
            at = start[:, None] + jnp.arange(length, dtype=jnp.int32)[None]
            fresh = rows[:, None] & (at >= reach[:, None] - lead) & (at < stop[:, None])
            return lambda: self._pass(rows, before, start, fresh, columns=columns, kept=kept)

        reading = _shortest(on, self.layout.spans, jnp.max(jnp.where(rows, self.state.end - reach, 0)))
        origin = self.state.rows.origin
        return self._charged(
            reading, rows, jnp.minimum(stop, self.state.end) - jnp.maximum(reach - lead, origin)
        )

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
        length, stop = fresh.shape[1], self.decoder.stop
        at = None if start is None or length == columns else start
        first = jnp.zeros_like(self.place.start) if at is None else at
        tokens, given = self.state.rows.canvas[:, :columns], self.state.given[:, :columns]
        if at is not None:
            tokens, given = take(tokens, at, length), take(given, at, length)
        inputs = self._inputs(tokens, at, columns, fresh, given=given, store=kept)
        block = self._block(first)
        alone = length > self.layout.block_length + int(self.model.shifted) and not stop.wants_tail
        features, kv = self.model.apply(self.params, inputs, before.kv, at, block if alone else None)
        hidden = features if alone else take(features, block.start, block.count)
        tail = self._tail(features, first) if stop.wants_tail else None
        new = Reading(hidden=hidden, tail=tail, work=before.work, kv=None)
        if self.decoder.cache.window != "canvas":
            new = keep(rows, new, dataclasses.replace(before, kv=None))
        return dataclasses.replace(new, kv=kv)

    def _inputs(
        self,
        tokens: Int[Array, "B T"],
        at: Int[Array, " B"] | Int[Array, "B T"] | None,
        columns: int,
        fresh: Bool[Array, "B T"],
        *,
        given: Bool[Array, "B T"],
        store: bool = True,
    ) -> Inputs:
        origin, scale = self.state.rows.origin, self.decoder.sampling.cfg_scale
        fed = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
        if at is not None:
            fed = at if at.ndim == 2 else at[:, None] + fed
        column = jnp.arange(columns, dtype=jnp.int32)[None]
        return Inputs(
            tokens=tokens,
            positions=fed - origin[:, None],
            valid=(column >= origin[:, None]) & (column < self.state.end[:, None]),
            origin=origin,
            fresh=fresh,
            prompt_length=jnp.maximum(self.layout.first - origin, 0),
            given=None if scale is None else given,
            scale=None if scale is None else jnp.broadcast_to(jnp.asarray(scale), origin.shape),
            store=store,
        )

    def _score(self, hidden: Float[Array, "B W D"]) -> Score:
        state, place, window = self.state, self.place, self.layout.block_length
        canvas, mask = state.rows.canvas, self.model.config.mask_token_id
        standing = take(canvas, place.start, window)
        masked = standing == mask
        wanted = None if state.rows.reference is None else take(state.rows.reference, place.start, window)
        named = jnp.stack([standing] if wanted is None else [standing, wanted], axis=-1)
        belief = self._believe(hidden, self._columns(), 0, named)
        # Past the reference's end, in an overhang, any candidate will do.
        reference = None if wanted is None else jnp.where(wanted == mask, belief.token, wanted)
        return Score(
            **{field.name: getattr(belief, field.name) for field in dataclasses.fields(belief) if field.name != "named"},
            standing=belief.named[..., 0],
            hidden=hidden,
            masked=masked,
            eligible=take(self.open_, place.start, window),
            editable=~masked & ~take(state.given, place.start, window) & (self._columns() < state.end[:, None]),
            canvas=canvas,
            start=place.start,
            origin=state.rows.origin,
            block_step=place.block_step,
            row_step=state.row_step,
            reference=reference,
            reference_log_prob=None if wanted is None else belief.named[..., 1],
        )

    def _tail(self, features: Float[Array, "B T D"], start: Int[Array, " B"]) -> Tail:
        length = features.shape[1]
        columns = start[:, None] + jnp.arange(length, dtype=jnp.int32)[None]
        everywhere = self._believe(features, columns, 0)
        ends = take(self.open_, start, length) & (everywhere.token == self.model.config.eos_token_id)
        log_odds = jnp.where(ends, everywhere.log_odds, NEVER)
        nowhere = self._no_tail()
        return Tail(ends=put(nowhere.ends, ends, start), log_odds=put(nowhere.log_odds, log_odds, start))

    def _believe(
        self,
        hidden: Float[Array, "B C D"],
        columns: Int[Array, "B C"],
        draw: int | Int[Array, ""],
        named: Int[Array, "B C n"] | None = None,
    ) -> Belief:
        rows, sampling = self.state.rows, self.decoder.sampling
        positions = jnp.maximum(columns - rows.origin[:, None], 0)
        draws = Draws(rows.keys, self.state.row_step, jnp.asarray(draw, jnp.int32), positions)
        head, vocabulary = self.model.head(self.params), Vocabulary.of(self.model, sampling)
        return believe(hidden, head, vocabulary, sampling, draws, named=named, mesh=self.layout.mesh)

    def _nothing(self) -> Reading:
        """What is known before any pass of the step."""
        config, rows = self.model.config, self.place.start.shape[0]
        hidden = jnp.zeros((rows, self.layout.block_length, config.d_model), jnp.dtype(config.dtype))
        tail = self._no_tail() if self.decoder.stop.wants_tail else None
        return Reading(hidden=hidden, tail=tail, work=jnp.zeros((rows,), jnp.float32), kv=self.kv)

    def _no_tail(self) -> Tail:
        shape = self.state.given.shape
        return Tail(ends=jnp.zeros(shape, bool), log_odds=jnp.full(shape, NEVER, jnp.float32))

    def _columns(self) -> Int[Array, "B W"]:
        """Those of the block."""
        return self.place.start[:, None] + jnp.arange(self.layout.block_length, dtype=jnp.int32)[None]

    def _block(self, first: Int[Array, " B"]) -> Span:
        """The block among tokens that are fed from column `first` on."""
        return Span(self.place.start - first, self.layout.block_length)

    def _charged(self, reading: Reading, rows: Bool[Array, " B"], tokens: Int[Array, " B"]) -> Reading:
        """The reading with the work of one more pass over so many tokens in these rows."""
        return dataclasses.replace(reading, work=reading.work + jnp.where(rows, self._work(tokens), 0.0))

    def _work(self, tokens: Int[Array, " B"]) -> Float[Array, " B"]:
        """Tokens fed to the whole stack, in forwards over the row's canvas (prompt to the end of the canvas)."""
        rows = self.state.rows
        canvas = self.layout.whole_blocks(rows.origin, rows.last) - rows.origin
        return self.model.copies * tokens.astype(jnp.float32) / jnp.maximum(canvas, 1).astype(jnp.float32)


def keeps_kv(decoder: Decoder) -> bool:
    """Whether the state holds keys and values: for a cache, or for the passes of a fill."""
    return decoder.cache.window != "canvas" or KV in decoder.fill.needs


def _shortest(on: Callable[[int], Callable[[], Reading]], lengths: tuple[int, ...], needed: Int[Array, ""]) -> Reading:
    """On the shortest of the lengths that holds what is needed; each is compiled."""
    if len(lengths) == 1:
        return on(lengths[0])()
    rung = sum((needed > length).astype(jnp.int32) for length in lengths[:-1])
    return jax.lax.switch(rung, [on(length) for length in lengths])
