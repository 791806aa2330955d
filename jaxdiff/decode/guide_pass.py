"""The pass of a guide: it reads the block's draft, once in each step, over keys and values of its own.

    the block, the candidates in its masks -> the guide -> features [B W D] -> its head -> Guiding -> Score.guide

A row's pass feeds its block and the column before that, at which the block's first token is read. All that lies left
is in the guide's KV cache: the first pass feeds the prompt as well, and the last one of a block has fed what the block
then holds. Where a token was written that the pass had otherwise (the guide's own, at the first disagreement), its
column is `State.guide_known`: what a later pass must feed begins there at the latest.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdiff.decode.decoder import Sampling
from jaxdiff.decode.guide import Guide
from jaxdiff.decode.passes import StepPasses
from jaxdiff.decode.pieces import in_pieces, pick, put_back, together
from jaxdiff.decode.running import finish, merge
from jaxdiff.decode.score import summary
from jaxdiff.decode.state import State
from jaxdiff.decode.tiles import Asked, Tile, over_tiles
from jaxdiff.decode.vocabulary import Vocabulary
from jaxdiff.leaves import weights_met
from jaxdiff.pytree import pytree
from jaxdiff.types import Guiding, Inputs, KVCache, Score, Span
from jaxdiff.windows import put, take


@pytree
class Text:
    """What each row's pass reads: `canvas` with the draft in the block that begins at `start`, all of which from column
    `new` on is to be fed.
    """

    canvas: Int[Array, "B L"]
    origin: Int[Array, " B"]
    start: Int[Array, " B"]
    new: Int[Array, " B"]


@pytree
class Heard:
    """What the guide's pass of a step gave; `rows`: those that took it, `draft`: what it read in the block."""

    said: Guiding
    rows: Bool[Array, " B"]
    draft: Int[Array, "B W"]
    work: Float[Array, " B"]
    kv: KVCache

    def kept_in(self, state: State, before: State) -> State:
        """The state after a step with its cost, its keys and values, and up to where these are of what stands there:
        in a row without a pass, of what stood there `before`.
        """
        start, window = state.start, self.draft.shape[1]
        fed = jnp.where(self.rows[:, None], self.draft, take(before.rows.canvas, start, window))
        other = take(state.rows.canvas, start, window) != fed
        until = jnp.where(self.rows, start + window, before.guide_known)
        first = jnp.where(jnp.any(other, axis=1), start + jnp.argmax(other, axis=1).astype(jnp.int32), until)
        return dataclasses.replace(
            state,
            work=state.work + self.work,
            guide_nfe=state.guide_nfe + self.rows.astype(jnp.int32),
            guide_known=jnp.minimum(until, first),
            guide_kv=self.kv,
        )


@dataclasses.dataclass(frozen=True)
class GuidePass(StepPasses):
    """The guide's pass of a step; `kv` is the guide's."""

    def run(self, score: Score, rows: Bool[Array, " B"]) -> Heard:
        """What the guide says of the candidates of `score`, for these rows."""
        window, length = score.masked.shape[1], score.canvas.shape[1]
        draft = jnp.where(score.masked, score.token, score.tokens)
        known, start = self.state.guide_known, self.place.start
        text = Text(put(score.canvas, draft, start), score.origin, start, jnp.minimum(known, start - 1))
        # A row that begins is fed its prompt too. Later a row lacks no more than its last block, and that only where a
        # policy around `agree` commits right of a token that the guide writes.
        late = rows & (known < start - 1)
        config, kv = self._guide.model.config, self.kv
        hidden = jnp.zeros((*draft.shape, config.d_model), jnp.dtype(config.dtype))
        longest = max(self.setup.layout.first + window, 2 * window + 1)
        for some, span in ((late, longest), (rows & ~late, window + 1)):
            hidden, kv = self._some(some, min(span, length), text, hidden, kv)
        fed = jnp.minimum(start + window, self.state.end) - jnp.maximum(text.new, score.origin)
        cost = self.beside(fed, round(weights_met(self._guide.params, config)))
        return Heard(self._said(hidden, draft), rows, draft, jnp.where(rows, cost, 0.0), kv)

    @property
    def _guide(self) -> Guide:
        assert self.setup.guide is not None
        return self.setup.guide

    def _some(
        self, rows: Bool[Array, " B"], span: int, text: Text, hidden: Float[Array, "B W D"], kv: KVCache
    ) -> tuple[Float[Array, "B W D"], KVCache]:
        """The pass of these rows over `span` columns up to the end of the block; of the others what was `hidden`."""
        size = together(rows.shape[0], span)
        if size == rows.shape[0]:

            def all_at_once(kv: KVCache) -> tuple[Float[Array, "B W D"], KVCache]:
                new, kv = self._read(text, rows, None, span, hidden.shape[1], kv)
                return jnp.where(rows[:, None, None], new, hidden), kv

            return jax.lax.cond(jnp.any(rows), all_at_once, lambda kv: (hidden, kv), kv)

        def piece(
            at: Int[Array, " C"], before: tuple[Float[Array, "B W D"], KVCache]
        ) -> tuple[Float[Array, "B W D"], KVCache]:
            new, kv = self._read(pick(text, at), None, at, span, hidden.shape[1], before[1])
            return put_back(before[0], new, at), kv

        return in_pieces(rows, text.start - text.new, size, piece, (hidden, kv))

    def _read(
        self,
        text: Text,
        rows: Bool[Array, " B"] | None,
        kv_rows: Int[Array, " B"] | None,
        span: int,
        window: int,
        kv: KVCache,
    ) -> tuple[Float[Array, "B W D"], KVCache]:
        """One pass of the guide over texts; `kv_rows`: the KV cache's row of each."""
        length, end = text.canvas.shape[1], text.start[:, None] + window
        at = jnp.clip(text.start + window - span, 0, length - span)
        column, fed = jnp.arange(length, dtype=jnp.int32)[None], at[:, None] + jnp.arange(span, dtype=jnp.int32)[None]
        fresh = (fed >= text.new[:, None]) & (fed < end)
        inputs = Inputs(
            tokens=take(text.canvas, at, span),
            positions=fed - text.origin[:, None],
            valid=(column >= text.origin[:, None]) & (column < end),
            origin=text.origin,
            fresh=fresh if rows is None else fresh & rows[:, None],
            rows=kv_rows,
        )
        block = Span(text.start - at, window)
        features, kept = self._guide.model.apply(self._guide.params, inputs, kv, at, block)
        return features, kept

    def _said(self, hidden: Float[Array, "B W D"], draft: Int[Array, "B W"]) -> Guiding:
        """Of the features of the block: the vocabulary is gone over once, and once more where the rank is read."""
        config = self._guide.model.config
        forbidden = {*self._ids().forbidden, config.mask_token_id}
        ids = Vocabulary(config.vocab_size, tuple(sorted(forbidden)))
        asked = Asked.of(hidden, ids, Sampling(), self._draws(self.columns(), 0))
        asked = dataclasses.replace(asked, named=draft[..., None])
        head, mesh = self._guide.model.head(self._guide.params), self.setup.layout.mesh
        merged = over_tiles(asked, head, summary, merge, mesh)
        belief = finish(merged, (), ids.stand_in)
        own = merged.named[..., 0]
        rank, near = over_tiles(asked, head, _before, _both, mesh, own)
        return Guiding(
            token=belief.token,
            top=belief.prob,
            # Of the argmax the same number, to the bit: it is no less likely than itself.
            draft=jnp.where(belief.token == draft, belief.prob, jnp.exp(belief.named[..., 0])),
            rank=jnp.where(jnp.isfinite(belief.named[..., 0]), rank, config.vocab_size),
            gap=belief.gap,
            near=near,
        )


def _before(tile: Tile, logit: Float[Array, "B W"]) -> tuple[Int[Array, "B W"], Float[Array, "B W"]]:
    """Of a tile's ids, how many go before the draft token, whose logit this is: on equal logits the lower id does, as
    in an argmax. And the least distance of another's logit.
    """
    ids, draft, own = tile.ids[None, None], tile.asked.named, logit[..., None]
    goes = (tile.plain > own) | ((tile.plain == own) & (ids < draft))
    apart = jnp.where(ids == draft, jnp.inf, jnp.abs(tile.plain - own))
    return jnp.sum(goes, axis=-1, dtype=jnp.int32), jnp.min(apart, axis=-1)


def _both(
    a: tuple[Int[Array, "B W"], Float[Array, "B W"]], b: tuple[Int[Array, "B W"], Float[Array, "B W"]]
) -> tuple[Int[Array, "B W"], Float[Array, "B W"]]:
    return a[0] + b[0], jnp.minimum(a[1], b[1])
