"""The passes of one step: what they share, and the cheap ones that a fill may run after the full pass."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdiff.decode.decoder import Decoder
from jaxdiff.decode.layout import Setup
from jaxdiff.decode.push import Push, end_think_push
from jaxdiff.decode.score import Draws, Vocabulary, believe, log_marginal, text_ends
from jaxdiff.decode.state import State
from jaxdiff.leaves import weights_met
from jaxdiff.types import KV, Belief, Inputs, KVCache, Place, Span, text_end_ids


@dataclasses.dataclass(frozen=True)
class StepPasses:
    """One step's passes, where each row stands in its block; what a fill gets as `jaxdiff.protocols.Passes`."""

    setup: Setup
    state: State
    place: Place
    kv: KVCache | None  # of the state; for a fill, that after the full pass
    kv_rows: Int[Array, " B"] | None = None  # the KV cache's row of each row here; None: row i is row i

    def canvas(self, canvas: Int[Array, "B L"], draw: int | Int[Array, ""]) -> tuple[Belief, Float[Array, " B"]]:
        """As `Passes.canvas`."""
        inputs = self.inputs(canvas, None, canvas.shape[1], None, given=self.state.given)
        block = self.block(jnp.zeros_like(self.place.start))
        features, _ = self.setup.model.apply(self.setup.params, inputs, read=block)
        return self.believe(features, self.columns(), draw), self.work(self.seen - self.state.rows.origin)

    def window(self, tokens: Int[Array, "B W"], draw: int | Int[Array, ""]) -> tuple[Belief, Float[Array, " B"]]:
        """As `Passes.window`."""
        return self.group(tokens, self.columns(), draw)

    def group(
        self, tokens: Int[Array, "B C"], columns: Int[Array, "B C"], draw: int | Int[Array, ""]
    ) -> tuple[Belief, Float[Array, " B"]]:
        """As `Passes.group`. A shifted model is fed the columns before these too, with the tokens that stand there."""
        fed, at, read = tokens, columns, None
        if self.setup.model.shifted:
            fed, at, read = self._with_the_columns_before(tokens, columns)
        given = jnp.take_along_axis(self.state.given, at, axis=1)
        inputs = self.inputs(fed, at, self.state.given.shape[1], None, given=given, store=False)
        features, _ = self.setup.model.apply(self.setup.params, inputs, self.kv, at, read)
        valid = (columns >= self.state.rows.origin[:, None]) & (columns < self.state.end[:, None])
        cost = self.work((1 + int(self.setup.model.shifted)) * jnp.sum(valid, axis=1, dtype=jnp.int32))
        return self.believe(features, columns, draw), cost

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

    @property
    def inside(self) -> Bool[Array, "B W"]:
        """As `Passes.inside`."""
        columns = self.columns()
        return (columns >= self.state.rows.origin[:, None]) & (columns < self.seen[:, None])

    def embed(self, tokens: Int[Array, "B C"]) -> Float[Array, "B C D"]:
        """As `Passes.embed`."""
        return self.setup.model.embed(self.setup.params, tokens)

    def beside(self, tokens: Int[Array, " B"], weights: int) -> Float[Array, " B"]:
        """As `Passes.beside`."""
        share = weights / weights_met(self.setup.params, self.setup.model.config)
        return share * self.work(tokens) / self.setup.model.copies

    def inputs(
        self,
        tokens: Int[Array, "B T"],
        at: Int[Array, " B"] | Int[Array, "B T"] | None,
        columns: int,
        fresh: Bool[Array, "B T"] | None,
        *,
        given: Bool[Array, "B T"],
        store: bool = True,
    ) -> Inputs:
        origin, scale = self.state.rows.origin, self.setup.decoder.sampling.cfg_scale
        fed = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
        if at is not None:
            fed = at if at.ndim == 2 else at[:, None] + fed
        column = jnp.arange(columns, dtype=jnp.int32)[None]
        return Inputs(
            tokens=tokens,
            positions=fed - origin[:, None],
            valid=(column >= origin[:, None]) & (column < self.seen[:, None]),
            origin=origin,
            fresh=fresh,
            prompt_length=jnp.maximum(self.setup.layout.first - origin, 0),
            given=None if scale is None else given,
            scale=None if scale is None else jnp.broadcast_to(jnp.asarray(scale), origin.shape),
            rows=self.kv_rows,
            store=store,
        )

    def believe(
        self,
        hidden: Float[Array, "B C D"],
        columns: Int[Array, "B C"],
        draw: int | Int[Array, ""],
        named: Int[Array, "B C n"] | None = None,
        within: tuple[Float[Array, "B C D"], Float[Array, " B"]] | None = None,
    ) -> Belief:
        """As `Passes.believe`; `named` as that of `score.believe`."""
        head, sampling, mesh = self._head(), self.setup.decoder.sampling, self.setup.layout.mesh
        draws, push = self._draws(columns, draw), self._push(columns)
        return believe(hidden, head, self._ids(), sampling, draws, named=named, push=push, within=within, mesh=mesh)

    def log_marginal(
        self, hidden: Float[Array, "B C D"], columns: Int[Array, "B C"], token: Int[Array, "B C"]
    ) -> Float[Array, "B C"]:
        """As `Passes.log_marginal`."""
        head, sampling, mesh = self._head(), self.setup.decoder.sampling, self.setup.layout.mesh
        return log_marginal(hidden, head, self._ids(), sampling, self._draws(columns, 0), token, mesh=mesh)

    def text_ends(
        self, hidden: Float[Array, "B C D"], columns: Int[Array, "B C"]
    ) -> tuple[Bool[Array, "B C"], Float[Array, "B C"]]:
        """Where the full pass' candidate ends a text, and how surely."""
        head, sampling, config = self._head(), self.setup.decoder.sampling, self.setup.model.config
        draws, push, mesh = self._draws(columns, 0), self._push(columns), self.setup.layout.mesh
        return text_ends(hidden, head, self._ids(), sampling, draws, text_end_ids(config), push=push, mesh=mesh)

    def _head(self) -> Float[Any, "D V"]:
        return self.setup.model.head(self.setup.params)

    def _ids(self) -> Vocabulary:
        return Vocabulary.of(self.setup.model, self.setup.decoder.sampling)

    def _draws(self, columns: Int[Array, "B C"], draw: int | Int[Array, ""]) -> Draws:
        rows = self.state.rows
        positions = jnp.maximum(columns - rows.origin[:, None], 0)
        return Draws(rows.keys, self.state.row_step, jnp.asarray(draw, jnp.int32), positions)

    def _push(self, columns: Int[Array, "B C"]) -> Push | None:
        model, asked = self.setup.model, self.setup.decoder.sampling.end_think
        first = self.setup.layout.first
        return None if asked is None else end_think_push(model, asked, self.state, self.place, first, columns)

    @property
    def seen(self) -> Int[Array, " B"]:
        """One past the last column that a row attends to: its end; under a variable length not past its block's."""
        end = self.state.end
        return jnp.minimum(end, self.place.start + self.place.block) if self.setup.decoder.length == "var" else end

    def columns(self) -> Int[Array, "B W"]:
        """Those of the block."""
        return self.place.start[:, None] + jnp.arange(self.setup.layout.block_length, dtype=jnp.int32)[None]

    def block(self, first: Int[Array, " B"]) -> Span:
        """The block among tokens that are fed from column `first` on."""
        return Span(self.place.start - first, self.setup.layout.block_length)

    def work(self, tokens: Int[Array, " B"]) -> Float[Array, " B"]:
        """Tokens fed to the whole stack, in forwards over the row's canvas (prompt to the end of the canvas)."""
        rows = self.state.rows
        canvas = self.setup.layout.whole_blocks(rows.origin, rows.last) - rows.origin
        return self.setup.model.copies * tokens.astype(jnp.float32) / jnp.maximum(canvas, 1).astype(jnp.float32)


def keeps_kv(decoder: Decoder) -> bool:
    """Whether the state holds keys and values: for a cache, or for the passes of a fill."""
    return decoder.cache.window != "canvas" or KV in decoder.fill.needs
