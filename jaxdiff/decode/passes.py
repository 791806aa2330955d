"""The passes of one step: what they share, and the cheap ones that a fill may run after the full pass."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdiff.decode.layout import Setup
from jaxdiff.decode.pieces import shortest
from jaxdiff.decode.push import Push, end_think_push
from jaxdiff.decode.score import Draws, Vocabulary, believe, log_marginal, text_ends
from jaxdiff.decode.state import State
from jaxdiff.decode.tiles import Admitted, Asked
from jaxdiff.leaves import weights_met
from jaxdiff.types import Belief, Inputs, KVCache, Place, Span, text_end_ids
from jaxdiff.windows import put, take

SMALLEST = 4  # positions of a group: fewer cost as much on any machine


@dataclasses.dataclass(frozen=True)
class Around:
    """The block of each row, and the column before it where a shifted model reads its first token there.

    `fed`: of these n columns, those that a pass feeds; `count`: how many of them are the row's own; n is W or W + 1.
    """

    tokens: Int[Array, "B n"]
    given: Bool[Array, "B n"]
    fed: Bool[Array, "B n"]
    first: Int[Array, " B"]
    count: Int[Array, " B"]


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
        around = self._around(tokens, jnp.ones(tokens.shape, bool))
        inputs = self.inputs(
            around.tokens, around.first, self.state.given.shape[1], None, given=around.given, store=False
        )
        block = self.block(around.first)
        features, _ = self.setup.model.apply(self.setup.params, inputs, self.kv, around.first, block)
        return self.believe(features, self.columns(), draw), self.work(around.count)

    def group(
        self, tokens: Int[Array, "B W"], among: Bool[Array, "B W"], draw: int | Int[Array, ""]
    ) -> tuple[Belief, Float[Array, " B"]]:
        """As `Passes.group`. A shifted model is fed the columns before these too, with the tokens that stand there.

        What fills up a width are further columns of the block: each is fed once, and as none of them is fresh, what is
        kept of them is seen, by them and by the group.
        """
        around = self._around(tokens, among)
        order = jnp.argsort(~around.fed, axis=1, stable=True).astype(jnp.int32)  # those that are fed, then others
        rank = jnp.argsort(order, axis=1).astype(jnp.int32)
        place = take(rank, self.place.start - around.first, tokens.shape[1])

        def on(width: int) -> Callable[[], Belief]:
            def run() -> Belief:
                own = order[:, :width]
                some, fresh, given = (
                    jnp.take_along_axis(x, own, axis=1) for x in (around.tokens, around.fed, around.given)
                )
                at = around.first[:, None] + own
                inputs = self.inputs(some, at, self.state.given.shape[1], fresh, given=given, store=False)
                features, _ = self.setup.model.apply(self.setup.params, inputs, self.kv, at)
                belief = self.believe(features, at, draw)
                there = jnp.minimum(place, width - 1)
                return jax.tree.map(lambda leaf: jax.vmap(lambda row, at: row[at])(leaf, there), belief)

            return run

        widths = group_widths(tokens.shape[1], around.tokens.shape[1])
        needed = jnp.sum(around.fed, axis=1, dtype=jnp.int32)
        return shortest(on, widths, jnp.max(needed)), self.work(around.count)

    def _around(self, tokens: Int[Array, "B W"], among: Bool[Array, "B W"]) -> Around:
        """The block with these tokens in it, and what must be fed for the belief at the positions `among`."""
        more, columns, block = int(self.setup.model.shifted), self.state.given.shape[1], tokens.shape[1]
        count = min(block + more, columns)
        first = jnp.clip(self.place.start - more, 0, columns - count)
        at = self.place.start - first
        fed = put(jnp.zeros((tokens.shape[0], count), bool), among, at)
        if more:
            fed |= jnp.pad(fed[:, 1:], ((0, 0), (0, 1)))
        column = first[:, None] + jnp.arange(count, dtype=jnp.int32)[None]
        real = (column >= self.state.rows.origin[:, None]) & (column < self.state.end[:, None])
        return Around(
            tokens=put(take(self.state.rows.canvas, first, count), tokens, at),
            given=take(self.state.given, first, count),
            fed=fed,
            first=first,
            count=jnp.sum(fed & real, axis=1, dtype=jnp.int32),
        )

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
        admitted: Admitted | None = None,
    ) -> Belief:
        """As `Passes.believe`; `named` and `admitted` as those of `score.believe`."""
        return believe(
            hidden,
            self._head(),
            self._ids(),
            self.setup.decoder.sampling,
            self._draws(columns, draw),
            named=named,
            push=self._push(columns),
            within=within,
            admitted=admitted,
            mesh=self.setup.layout.mesh,
        )

    def asked(self, hidden: Float[Array, "B C D"], columns: Int[Array, "B C"]) -> Asked:
        """What the full pass draws from at these columns, with its noise."""
        draws, push = self._draws(columns, 0), self._push(columns)
        return Asked.of(hidden, self._ids(), self.setup.decoder.sampling, draws, push)

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


def group_widths(block: int, most: int) -> tuple[int, ...]:
    """How many columns are fed for a group in a block of so many positions, `most` at most: 4, 8, 16 ... and all."""
    doubled = (SMALLEST << power for power in range(block.bit_length()))
    return (*(width for width in doubled if width < block), most)
