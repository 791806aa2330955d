"""How far each row has come in a constraint's automaton, and which tokens can still be part of one of its texts."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jaxdiff.decode.layout import Setup
from jaxdiff.decode.passes import StepPasses
from jaxdiff.decode.sets import Strip, admitted, backwards, forwards, kind_of, single
from jaxdiff.decode.state import Rows, State
from jaxdiff.decode.vocabulary import Vocabulary
from jaxdiff.protocols import Automaton
from jaxdiff.pytree import pytree
from jaxdiff.types import BEGUN


@pytree
class Reached:
    """What of an automaton each row has come to.

    Attributes:
        state: that before the first column of the block that the row stands in: all left of it is written.
        behind: the states behind each block from which all right of it can be completed, blocks counted from the row's
            first one. Nothing there changes while the block is decoded.
    """

    state: Int[Array, " B"]
    behind: Bool[Array, "B n S"]


def begin_text(setup: Setup, automaton: Automaton, rows: Rows, given: Bool[Array, "B L"]) -> Reached:
    """Before the first token."""
    layout, count = setup.layout, rows.origin.shape[0]
    first, window = layout.first_block(rows.origin), layout.block_length
    room = rows.canvas.shape[1] - layout.first + (layout.attention_block if layout.overhang else 0)
    accepts = jnp.asarray(automaton.accepts)

    def block(behind: Bool[Array, "B S"], number: Int[Array, ""]) -> tuple[Bool[Array, "B S"], Bool[Array, "B S"]]:
        strip = _strip(setup, automaton, rows, given, first + number * window, window)
        return backwards(automaton, strip, behind)[0], behind

    numbers = jnp.arange(-(-room // window), dtype=jnp.int32)
    last = jnp.broadcast_to(accepts, (count, *accepts.shape))
    behind = jax.lax.scan(block, last, numbers, reverse=True)[1]
    return Reached(jnp.full((count,), BEGUN, jnp.int32), behind.transpose(1, 0, 2))


def go_on(setup: Setup, automaton: Automaton, state: State, start: Int[Array, " B"]) -> Reached:
    """Before column `start` of each row, the first of the block that it stands in now."""
    following, text = jnp.asarray(automaton.next), state.reached

    def one(carry: tuple[Int[Array, " B"], Int[Array, " B"]]) -> tuple[Int[Array, " B"], Int[Array, " B"]]:
        column, at = carry
        strip = _strip(setup, automaton, state.rows, state.given, column, 1)
        reads = strip.inside[:, 0] & (column < start)
        return jnp.minimum(column + 1, start), jnp.where(reads, following[strip.kind[:, 0], at], at)

    column = jnp.minimum(jnp.maximum(state.start, setup.layout.first_block(state.rows.origin)), start)
    _, at = jax.lax.while_loop(lambda carry: jnp.any(carry[0] < start), one, (column, text.state))
    return dataclasses.replace(text, state=at)


def _strip(
    setup: Setup,
    automaton: Automaton,
    rows: Rows,
    given: Bool[Array, "B L"],
    start: Int[Array, " B"],
    size: int,
    tokens: Int[Array, "B n"] | None = None,
) -> Strip:
    """The columns from `start` on, as they stand on the canvas or with these tokens in them."""
    length = given.shape[1]
    column = jnp.arange(length, dtype=jnp.int32)[None]
    first = jnp.min(jnp.where(given, length, column), axis=1)
    last = jnp.minimum(jnp.max(jnp.where(given, -1, column), axis=1) + 1, rows.last)
    here = start[:, None] + jnp.arange(size, dtype=jnp.int32)[None]
    if tokens is None:
        tokens = jnp.take_along_axis(rows.canvas, jnp.minimum(here, length - 1), axis=1)
    inside = (here >= first[:, None]) & (here < last[:, None])
    # A canvas has no prompt; an answer always has one.
    ends = (rows.origin < setup.layout.first) & bool(ends_of(setup))
    return Strip.of(automaton, tokens, setup.model.config.mask_token_id, inside, ends)


def ends_of(setup: Setup) -> list[int]:
    """The ids that end an answer and may be predicted."""
    forbidden = Vocabulary.of(setup.model, setup.decoder.sampling).forbidden
    return [token for token in setup.model.config.eos_ids if token not in forbidden]


@dataclasses.dataclass(frozen=True)
class Standing:
    """The block of each row in one step, read by an automaton; `reached`: before the block."""

    passes: StepPasses
    automaton: Automaton
    reached: Reached

    def kinds(self, tokens: Int[Array, "B W"]) -> Bool[Array, "B W K"]:
        """The classes with which each column of the block can be part of a text, all else as these tokens are."""
        strip, before, behind = self._sets(tokens)
        return admitted(self.automaton, strip, before, behind)

    def kinds_at(self, tokens: Int[Array, "B W"], at: Int[Array, "B 1"]) -> Bool[Array, "B 1 K"]:
        """The same of one column of each row's block."""
        strip, before, behind = self._sets(tokens)
        here = at.T[..., None]
        one = jax.tree.map(lambda leaf: jnp.take_along_axis(leaf, at, axis=1) if leaf.ndim == 2 else leaf, strip)
        return admitted(self.automaton, one, *(jnp.take_along_axis(sets, here, axis=0) for sets in (before, behind)))

    def admits(self, kinds: Bool[Array, "B _ K"], token: Int[Array, "B n"]) -> Bool[Array, "B n"]:
        """Whether each of these tokens is of one of the classes, of its own column or of the only one."""
        return jnp.take_along_axis(kinds, kind_of(self.automaton, token)[..., None], axis=2)[..., 0]

    def fits(self, tokens: Int[Array, "B W"]) -> Bool[Array, " B"]:
        """Whether the canvas can be completed with these tokens in the block."""
        before, _ = backwards(self.automaton, self._strip(tokens), self._behind())
        return jnp.take_along_axis(before, self.reached.state[:, None], axis=1)[:, 0]

    def _sets(self, tokens: Int[Array, "B W"]) -> tuple[Strip, Bool[Array, "W B S"], Bool[Array, "W B S"]]:
        """The block, and the sets of states before and behind each of its columns."""
        strip, behind = self._strip(tokens), self._behind()
        before = forwards(self.automaton, strip, single(self.reached.state, behind.shape[1]))
        return strip, before, backwards(self.automaton, strip, behind)[1]

    def _strip(self, tokens: Int[Array, "B W"]) -> Strip:
        setup, state, place = self.passes.setup, self.passes.state, self.passes.place
        return _strip(setup, self.automaton, state.rows, state.given, place.start, tokens.shape[1], tokens)

    def _behind(self) -> Bool[Array, "B S"]:
        place = self.passes.place
        number = (place.start - place.first) // place.block
        return jnp.take_along_axis(self.reached.behind, number[:, None, None], axis=1)[:, 0]
