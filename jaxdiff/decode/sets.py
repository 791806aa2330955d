"""Sets of states along the columns of a canvas: what of a constraint's texts may still stand there.

    forwards    from the states before the first column: those that what stands there may lead to, [MASK] to any
    backwards   from those behind the last column: those from which what stands there leads to one of these
    admitted    of both: the classes of tokens with which a column can be part of a text

In a set every state counts once, whatever the tokens that lead to it: a step of a set is a product of a Boolean vector
and matrix. LOST is in none.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jaxdiff.protocols import Automaton
from jaxdiff.pytree import pytree
from jaxdiff.types import ENDED, ENDS, LOST, NOWHERE


@pytree
class Strip:
    """Some columns of each row's canvas, as an automaton reads them.

    Attributes:
        kind: the class of what stands there; of a hole it says nothing.
        hole: [MASK] stands there.
        inside: the column is part of the text; what stands elsewhere changes no state.
        ends: rows whose text may be over before its last column.
    """

    kind: Int[Array, "B n"]
    hole: Bool[Array, "B n"]
    inside: Bool[Array, "B n"]
    ends: Bool[Array, " B"]

    @classmethod
    def of(
        cls,
        constraint: Automaton,
        tokens: Int[Array, "B n"],
        mask_id: int,
        inside: Bool[Array, "B n"],
        ends: Bool[Array, " B"],
    ) -> Strip:
        kind = kind_of(constraint, tokens)
        return cls(jnp.where((kind == ENDS) & ~ends[:, None], NOWHERE, kind), tokens == mask_id, inside, ends)

    @property
    def columns(self) -> tuple[Int[Array, "n B"], Bool[Array, "n B"], Bool[Array, "n B"]]:
        """Column by column: `kind`, `hole`, `inside`."""
        return self.kind.T, self.hole.T, self.inside.T


def kind_of(constraint: Automaton, tokens: Int[Array, "*shape"]) -> Int[Array, "*shape"]:
    """The class of each id."""
    of = jnp.asarray(constraint.of)
    return of[jnp.minimum(tokens, of.shape[0] - 1)]


def backwards(
    constraint: Automaton, strip: Strip, behind: Bool[Array, "B S"]
) -> tuple[Bool[Array, "B S"], Bool[Array, "n B S"]]:
    """The set before the first column, and those behind each column, the last of them `behind`."""
    following, accepts = jnp.asarray(constraint.next), jnp.asarray(constraint.accepts)
    from_hole = jnp.asarray(constraint.hole).T

    def column(
        behind: Bool[Array, "B S"], here: tuple[Int[Array, " B"], Bool[Array, " B"], Bool[Array, " B"]]
    ) -> tuple[Bool[Array, "B S"], Bool[Array, "B S"]]:
        kind, hole, inside = here
        of_token = jnp.take_along_axis(behind, following[kind], axis=1)
        of_hole = jnp.matmul(behind.astype(jnp.float32), from_hole) > 0.0
        of_hole |= (strip.ends & behind[:, ENDED])[:, None] & accepts[None]
        before = jnp.where(hole[:, None], of_hole, of_token)
        return jnp.where(inside[:, None], before, behind), behind

    return jax.lax.scan(column, behind, strip.columns, reverse=True)


def forwards(constraint: Automaton, strip: Strip, before: Bool[Array, "B S"]) -> Bool[Array, "n B S"]:
    """The sets before each column, the first of them `before`."""
    following, accepts = jnp.asarray(constraint.next), jnp.asarray(constraint.accepts)
    rows = jnp.arange(before.shape[0], dtype=jnp.int32)[:, None]

    def column(
        before: Bool[Array, "B S"], here: tuple[Int[Array, " B"], Bool[Array, " B"], Bool[Array, " B"]]
    ) -> tuple[Bool[Array, "B S"], Bool[Array, "B S"]]:
        kind, hole, inside = here
        of_token = jnp.zeros_like(before).at[rows, following[kind]].max(before).at[:, LOST].set(False)
        of_hole = jnp.matmul(before.astype(jnp.float32), jnp.asarray(constraint.hole)) > 0.0
        over = strip.ends & jnp.any(before & accepts[None], axis=1)
        of_hole = of_hole.at[:, ENDED].max(over)
        after = jnp.where(hole[:, None], of_hole, of_token)
        return jnp.where(inside[:, None], after, before), before

    return jax.lax.scan(column, before, strip.columns)[1]


def admitted(
    constraint: Automaton, strip: Strip, before: Bool[Array, "n B S"], behind: Bool[Array, "n B S"]
) -> Bool[Array, "B n K"]:
    """The classes that lead from a state before a column to one behind it; all of them where it is not `inside`."""
    following = jnp.asarray(constraint.next)
    own = (jnp.arange(following.shape[0]) != ENDS)[None] | strip.ends[:, None]

    def column(sets: tuple[Bool[Array, "B S"], Bool[Array, "B S"]]) -> Bool[Array, "B K"]:
        before, behind = sets
        return jnp.any(before[:, None] & behind[:, following], axis=2) & own

    kinds = jax.lax.map(column, (before, behind)).transpose(1, 0, 2)
    return kinds | ~strip.inside[..., None]


def single(state: Int[Array, " B"], states: int) -> Bool[Array, "B S"]:
    """The sets of one state each."""
    return jnp.arange(states, dtype=jnp.int32)[None] == state[:, None]
