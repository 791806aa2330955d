"""Counts of what followed in the text so far (the n-gram table of ADED, arXiv 2407.12021, without its tree search)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jaxdiff.decode.decoder import Sampling
from jaxdiff.drafts.base import Proposed, Seen, Text, nothing
from jaxdiff.drafts.recycling import NODES
from jaxdiff.drafts.tree import Tree, best_first, grow
from jaxdiff.protocols import Model
from jaxdiff.pytree import choice, pytree
from jaxdiff.types import HOLE, Params

BUCKETS, SLOTS = 1024, 4  # contexts of each length that a table holds, and successors of a context
ACCEPT = (0.7, 0.12, 0.05, 0.03)  # of a rank: what shapes the tree, and nothing more
MIX = (2654435761, 40503)  # of the hash


@pytree
class Table:
    """Of each row: the contexts of one token (0) and of two (1) that were seen, what followed them, and how often.

    A context lies in the bucket of its hash, where a new one takes the place of another. The successor that came last
    stands in the first slot.
    """

    context: Int[Array, "B 2 H 2"]
    token: Int[Array, "B 2 H s"]
    count: Int[Array, "B 2 H s"]

    def after(self, token: Int[Array, "B m"], before: Int[Array, "B m"]) -> Int[Array, "B m k"]:
        """What may follow: what followed the two tokens, the most frequent first, then what followed the one."""
        found = []
        for order in (1, 0):
            context = jnp.stack([before if order else jnp.full_like(before, HOLE), token], axis=-1)
            row, at = jnp.arange(token.shape[0], dtype=jnp.int32)[:, None], hashed(context)
            own = jnp.all(self.context[row, order, at] == context, axis=-1, keepdims=True)
            often = jnp.argsort(self.count[row, order, at], axis=-1, descending=True, stable=True)
            tokens = jnp.take_along_axis(self.token[row, order, at], often, axis=-1)
            found.append(jnp.where(own, tokens, HOLE))
        long, short = found
        again = jnp.any(short[..., :, None] == long[..., None, :], axis=-1)
        tokens = jnp.concatenate([long, jnp.where(again, HOLE, short)], axis=-1)
        first = jnp.argsort(tokens == HOLE, axis=-1, stable=True)[..., :SLOTS]
        return jnp.take_along_axis(tokens, first, axis=-1)

    def with_token(
        self, before: Int[Array, " B"], token: Int[Array, " B"], follows: Int[Array, " B"], on: Bool[Array, " B"]
    ) -> Table:
        """With one more token that followed, in the rows `on` where the context is there."""
        one = self._with(0, jnp.full_like(before, HOLE), token, follows, on)
        return one._with(1, before, token, follows, on)

    def _with(
        self,
        order: int,
        before: Int[Array, " B"],
        token: Int[Array, " B"],
        follows: Int[Array, " B"],
        on: Bool[Array, " B"],
    ) -> Table:
        context = jnp.stack([before, token], axis=-1)
        row, at = jnp.arange(token.shape[0], dtype=jnp.int32), hashed(context)
        own = jnp.all(self.context[row, order, at] == context, axis=-1, keepdims=True)
        tokens = jnp.where(own, self.token[row, order, at], HOLE)
        counts = jnp.where(own, self.count[row, order, at], 0)
        slot, same = jnp.arange(SLOTS, dtype=jnp.int32)[None], tokens == follows[:, None]
        least = SLOTS - 1 - jnp.argmin(counts[:, ::-1], axis=1, keepdims=True)  # of equals the one unseen for longest
        there = jnp.any(same, axis=1, keepdims=True)
        place = jnp.where(there, jnp.argmax(same, axis=1, keepdims=True), least)
        behind = jnp.argsort(jnp.where(slot == place, -1, slot), axis=1)  # that slot, then the others
        count = jnp.where(there, jnp.take_along_axis(counts, place, axis=1), 0) + 1
        tokens, counts = (jnp.take_along_axis(x, behind, axis=1) for x in (tokens, counts))
        written = on & (token != HOLE) & (follows != HOLE) & ((before != HOLE) | (order == 0))
        at = jnp.where(written, at, BUCKETS)  # of the others: dropped
        return Table(
            self.context.at[row, order, at].set(context, mode="drop"),
            self.token.at[row, order, at].set(tokens.at[:, 0].set(follows), mode="drop"),
            self.count.at[row, order, at].set(counts.at[:, 0].set(count[:, 0]), mode="drop"),
        )


def hashed(context: Int[Array, "*b 2"]) -> Int[Array, "*b"]:
    """The bucket of a context."""
    wide = context.astype(jnp.uint32)
    mixed = wide[..., 0] * jnp.uint32(MIX[1]) + wide[..., 1]
    return ((mixed * jnp.uint32(MIX[0])) >> 16).astype(jnp.int32) % BUCKETS


@pytree
class Ngram:
    """A table of which token followed each token, and each pair of tokens, in the row's prompt and answer, and how
    often: what followed the pair is guessed first. It repeats what was said before, and takes no pass of its own.

    The table is the row's own, or goes on from that of an earlier call (`speculate(warm=)`).

    Attributes:
        nodes: of the tree, the root among them: tokens that a pass of the target feeds.
    """

    nodes: str = choice(NODES, default="16")

    @property
    def tree(self) -> Tree:
        return best_first(int(self.nodes), ACCEPT)

    @property
    def likely(self) -> int:
        return 0

    def check(self, target: Model, longest: int) -> None:
        del target, longest

    def empty(self, target: Model, rows: int) -> Table:
        del target
        shape = (rows, 2, BUCKETS)
        return Table(
            jnp.full((*shape, 2), HOLE, jnp.int32),
            jnp.full((*shape, SLOTS), HOLE, jnp.int32),
            jnp.zeros((*shape, SLOTS), jnp.int32),
        )

    def begin(self, state: Table, text: Text) -> Table:
        return _read(state, text, jnp.zeros_like(text.known), text.first, jnp.ones(text.known.shape, bool))

    def propose(self, state: Table, target: tuple[Model, Params], text: Text, sampling: Sampling) -> Proposed:
        del target, sampling
        last = text.at(text.known[:, None] - jnp.asarray([1, 2], jnp.int32)[None])
        return Proposed(grow(self.tree, last[:, 0], last[:, 1], state.after), **nothing(last.shape[0]))

    def update(self, state: Table, seen: Seen) -> Table:
        return _read(state, seen.text, seen.text.known - seen.new, self.tree.depth + 1, seen.live)


def _read(table: Table, text: Text, start: Int[Array, " B"], count: int, live: Bool[Array, " B"]) -> Table:
    """With the tokens of the text in `count` columns from each row's start on."""

    def one(offset: int | Int[Array, ""], table: Table) -> Table:
        columns = (start + offset)[:, None] - jnp.asarray([2, 1, 0], jnp.int32)[None]
        before, token, follows = text.at(columns).T
        return table.with_token(before, token, follows, live)

    return jax.lax.fori_loop(0, count, one, table)
