"""The full pass of a step: the one that scores each row's block.

without a cache   canvas [B L] -> its first n columns, n on the ladder -> features [B W D] of the block,
                  or of all n for a stopper that asks
with one          rows that are due: the same, into the KV cache; the others: a window [B T] over the KV cache
beside either     W tokens more, the block's shadow, for a policy that asks
of the features   the block [B W D] -> Belief -> Score;  those of open positions -> ends of text -> Tail
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdiff.decode import shadow
from jaxdiff.decode.decoder import Sampling
from jaxdiff.decode.passes import StepPasses
from jaxdiff.decode.pieces import in_pieces, most, pick, put_back, shortest, together
from jaxdiff.decode.score import log_marginal
from jaxdiff.decode.state import keep
from jaxdiff.decode.tail import Wide, foresee, no_tail
from jaxdiff.parallel.mesh import platform
from jaxdiff.pytree import pytree, with_numbers
from jaxdiff.types import KV, NEVER, KVCache, Score, Tail
from jaxdiff.windows import put, take


@pytree
class Reading:
    """What passes gave so far: the features of the block, of its shadow where a policy asks and of all where a stopper
    does, keys and values; their work.
    """

    hidden: Float[Array, "B W D"]
    shadow: Float[Array, "B W D"] | None
    wide: Wide | None
    work: Float[Array, " B"]
    kv: KVCache | None


# A pass (of a `FullPass`) of the rows that are marked, or of all; and what is known before it.
Way = Callable[[Any, Bool[Array, " B"] | None, Reading], Reading]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FullPass(StepPasses):
    """The full pass of a step; `open_`: positions that the step may commit."""

    open_: Bool[Array, "B L"]

    def run(self, live: Bool[Array, " B"]) -> tuple[Score, Tail | None, Reading]:
        """The step's one full pass: the score of each row's block, what the stopper asked for, and what else it gave.

        Where only some rows are due for a refresh, the others take their ordinary pass in the same step: one over the
        canvas for those, one over the window for these. A row that is done takes none.
        """
        cache, state, columns = self.setup.decoder.cache, self.state, self.state.given.shape[1]
        if cache.window == "canvas":
            reading = self._some(live, FullPass._over_canvas, columns, self.seen, self._nothing())
        else:
            due = live & cache.due(self.place)
            reading = self._some(due, FullPass._over_canvas, columns, state.end, self._nothing())
            reach, stop = self._window()
            longest, lengths = self.setup.layout.spans[-1], jnp.minimum(stop, state.end) - reach
            reading = self._some(live & ~due, FullPass._over_window, longest, lengths, reading)
        tail = None if reading.wide is None else self._tail(live, reading.wide)
        return self._score(reading), tail, reading

    def _some(
        self, rows: Bool[Array, " B"], way: Way, tokens: int, lengths: Int[Array, " B"], before: Reading
    ) -> Reading:
        """`way` over these rows; the others keep what was `before`. A row's pass is of at most so many `tokens`, and
        hangs on its own of the `lengths`.

        Where not all rows of a batch go together anyway, a step costs what these rows cost.
        """
        size = together(rows.shape[0], tokens)
        if size == rows.shape[0]:
            return jax.lax.cond(jnp.any(rows), lambda was: way(self, rows, was), lambda was: was, before)

        def piece(at: Int[Array, " C"], before: Reading) -> Reading:
            own = dataclasses.replace(before, kv=None)
            part = way(self._of(at), None, dataclasses.replace(pick(own, at), kv=before.kv))
            return dataclasses.replace(put_back(own, dataclasses.replace(part, kv=None), at), kv=part.kv)

        return in_pieces(rows, lengths, size, piece, before)

    def _of(self, at: Int[Array, " C"]) -> FullPass:
        """The same pass for these rows of the batch alone."""
        state = dataclasses.replace(self.state, kv=None, guide_kv=None)
        numbers = pick(state.numbers, at)
        return type(self)(
            setup=dataclasses.replace(self.setup, decoder=with_numbers(self.setup.decoder, numbers)),
            state=pick(state, at),
            place=pick(self.place, at),
            kv=None,  # it goes from piece to piece
            kv_rows=at,
            open_=self.open_[at],
        )

    def _over_canvas(self, rows: Bool[Array, " B"] | None, before: Reading) -> Reading:
        """A pass over as much of the canvas as holds these rows' ends, and the blocks that these lie in.

        Where a row's pass stores finished blocks alone, it ends with them; a seed is read where the next one begins.
        """
        cache, overhang, longest = self.setup.decoder.cache, self.setup.layout.overhang, self.state.given.shape[1]
        stop = self.place.whole if cache.block_causal else self.seen
        rungs = [rung + overhang for rung in self.setup.layout.ladder if rung + overhang < longest]

        def on(length: int) -> Callable[[], Reading]:
            fresh = None if rows is None else jnp.broadcast_to(rows[:, None], (rows.shape[0], length))
            return lambda: self._pass(before.kv, None, length, fresh, columns=length, kept=True)

        new = shortest(on, (*rungs, longest), most(stop + int(cache.seeds), rows) + overhang)
        return self._read(rows, before, new, stop - self.state.rows.origin)

    def _over_window(self, rows: Bool[Array, " B"] | None, before: Reading) -> Reading:
        """A pass over each row's window. A shifted model reads its first token from the column before, which under a
        cache that seeds is not fresh; to store, that feeds the column behind in its place, the seed.
        """
        cache, columns = self.setup.decoder.cache, self.state.given.shape[1]
        more = int(self.setup.model.shifted)
        reach, stop = self._window()
        lead = jnp.where(cache.stores(self.place) & cache.seeds, 0, more)
        new = reach - (0 if cache.seeds else more)
        # What nobody reads later is not written where a TPU would hold a second KV cache for it.
        kept = cache.window == "block" or cache.keeps or KV in self.setup.decoder.fill.needs or platform() != "tpu"

        def on(span: int) -> Callable[[], Reading]:
            length = min(span + more, columns)
            start = jnp.clip(reach - lead, 0, columns - length)
            at = start[:, None] + jnp.arange(length, dtype=jnp.int32)[None]
            fresh = (at >= new[:, None]) & (at < stop[:, None])
            fresh = fresh if rows is None else rows[:, None] & fresh
            return lambda: self._pass(before.kv, start, length, fresh, columns=columns, kept=kept)

        needed = jnp.minimum(stop, self.state.end) - reach
        read = shortest(on, self.setup.layout.spans, most(needed, rows))
        origin = self.state.rows.origin
        return self._read(rows, before, read, jnp.minimum(stop, self.state.end) - jnp.maximum(new, origin))

    def _window(self) -> tuple[Int[Array, " B"], Int[Array, " B"]]:
        """The first column of each row's window, and one past its last."""
        cache, columns = self.setup.decoder.cache, self.state.given.shape[1]
        reach = cache.reach(self.place)
        return reach, reach + cache.width(self.place) if cache.window == "block" else jnp.full_like(reach, columns)

    def _pass(
        self,
        kv: KVCache | None,
        start: Int[Array, " B"] | None,
        length: int,
        fresh: Bool[Array, "B T"] | None,
        *,
        columns: int,
        kept: bool,
    ) -> Reading:
        """One pass over a window of the first `columns` columns, `length` tokens from `start` on."""
        wants_tail = self.setup.decoder.stop.wants_tail
        at = None if start is None or length == columns else start
        first = jnp.zeros_like(self.place.start) if at is None else at
        tokens, given = self.state.rows.canvas[:, :columns], self.state.given[:, :columns]
        if at is not None:
            tokens, given = take(tokens, at, length), take(given, at, length)
        inputs = shadow.added(self, self.inputs(tokens, at, columns, fresh, given=given, store=kept))
        block, late = dataclasses.replace(self.block(first), last=shadow.size(self.setup)), None
        if self.setup.layout.seeds:  # where a row stores, the last token fed is the first of its block, and no other is
            start = jnp.minimum(block.start, length - block.count)
            block, late = dataclasses.replace(block, start=start), block.start - start
        alone = length > self.setup.layout.block_length + int(self.setup.model.shifted) and not wants_tail
        features, kv = self.setup.model.apply(self.setup.params, inputs, kv, at, block if alone else None)
        features, beside = shadow.parted(self.setup, features)
        hidden = features if alone else take(features, block.start, block.count)
        if late is not None:
            at = jnp.minimum(late[:, None] + jnp.arange(block.count, dtype=jnp.int32)[None], block.count - 1)
            hidden = jnp.take_along_axis(hidden, at[..., None], axis=1)
        wide, nothing = None, self._nothing()
        if nothing.wide is not None:
            wide = Wide(put(nothing.wide.features, features, first), first, first + length)
        return dataclasses.replace(nothing, hidden=hidden, shadow=beside, wide=wide, kv=kv)

    def _read(self, rows: Bool[Array, " B"] | None, before: Reading, new: Reading, tokens: Int[Array, " B"]) -> Reading:
        """What these rows' pass over so many tokens gave; `before` stays in the others."""
        own = dataclasses.replace(new, work=self.work(shadow.counted(self, tokens)), kv=None)
        own = own if rows is None else keep(rows, own, dataclasses.replace(before, kv=None))
        return dataclasses.replace(own, kv=new.kv)

    def _tail(self, live: Bool[Array, " B"], wide: Wide) -> Tail:
        """Where these rows foresee an end of the text among the open positions; as many together as of passes."""
        rows, columns = self.state.given.shape
        size = together(rows, columns)
        if size == rows:
            return foresee(self, wide, self.open_, live)

        def piece(at: Int[Array, " C"], tail: Tail) -> Tail:
            return put_back(tail, foresee(self._of(at), pick(wide, at), self.open_[at]), at)

        return in_pieces(
            live, jnp.minimum(self.seen, wide.stop) - self.place.start, size, piece, no_tail(self.open_.shape)
        )

    def _score(self, reading: Reading) -> Score:
        state, place, window = self.state, self.place, self.setup.layout.block_length
        canvas, mask = state.rows.canvas, self.setup.model.config.mask_token_id
        standing = take(canvas, place.start, window)
        masked = standing == mask
        wanted = None if state.rows.reference is None else take(state.rows.reference, place.start, window)
        named = jnp.stack([standing] if wanted is None else [standing, wanted], axis=-1)
        belief, inside = self.believe(reading.hidden, self.columns(), 0, named), self.columns() < state.end[:, None]
        if self.setup.decoder.stop.hides:
            there = jnp.where(inside, belief.log_odds, NEVER)
            belief = dataclasses.replace(belief, log_odds=there, prob=jnp.where(inside, belief.prob, 0.0))
        # Past the reference's end, in an overhang, any candidate will do.
        reference = None if wanted is None else jnp.where(wanted == mask, belief.token, wanted)
        return Score(
            **vars(belief),
            hidden=reading.hidden,
            masked=masked,
            eligible=take(self.open_, place.start, window),
            editable=~masked & ~take(state.given, place.start, window) & inside,
            canvas=canvas,
            start=place.start,
            origin=state.rows.origin,
            block_step=place.block_step,
            row_step=state.row_step,
            reference=reference,
            alone=None if reading.shadow is None else self._alone(reading.shadow, standing),
        )

    def _alone(self, hidden: Float[Array, "B W D"], token: Int[Array, "B W"]) -> Float[Array, "B W"]:
        """Log-softmax of what stands there in the shadow's features, before temperature and cuts."""
        draws, mesh = self._draws(self.columns(), 0), self.setup.layout.mesh
        return log_marginal(hidden, self._head(), self._ids(), Sampling(), draws, token, mesh=mesh)

    def _nothing(self) -> Reading:
        """What is known before any pass of the step."""
        config, rows = self.setup.model.config, self.place.start.shape[0]
        dtype, zero = jnp.dtype(config.dtype), jnp.zeros((rows,), jnp.int32)
        hidden = jnp.zeros((rows, self.setup.layout.block_length, config.d_model), dtype)
        beside = hidden if shadow.size(self.setup) else None
        wide = None
        if self.setup.decoder.stop.wants_tail:
            wide = Wide(jnp.zeros((*self.state.given.shape, config.d_model), dtype), zero, zero)
        return Reading(hidden=hidden, shadow=beside, wide=wide, work=jnp.zeros((rows,), jnp.float32), kv=self.kv)
