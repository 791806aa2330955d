"""What a draft promises, and what it is shown."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jaxdiff.decode.decoder import Sampling
from jaxdiff.drafts.tree import Tree
from jaxdiff.protocols import Model
from jaxdiff.pytree import pytree, static
from jaxdiff.types import HOLE, Params, PartState


@pytree
class Text:
    """What stands in each row: columns `origin` to `known`, of which the last is the root of the next tree.

    Attributes:
        canvas: prompt, answer, and behind them room that no row needs; what stands from `known` on says nothing.
        first: the column at which answers begin; `end`: one past the last column of an answer.
    """

    canvas: Int[Array, "B M"]
    origin: Int[Array, " B"]
    known: Int[Array, " B"]
    keys: Key[Array, " B"]
    first: int = static()
    end: int = static()

    def at(self, columns: Int[Array, "B m"]) -> Int[Array, "B m"]:
        """The tokens in these columns, HOLE where none of the text stands."""
        there = (columns >= self.origin[:, None]) & (columns < self.known[:, None])
        return jnp.where(there, jnp.take_along_axis(self.canvas, jnp.maximum(columns, 0), axis=1), HOLE)


@pytree
class Proposed:
    """A tree of guesses, and what they took.

    Attributes:
        tokens: of the draft's `tree`; node 0 is the root, HOLE stands where nothing is guessed.
        cheap: passes of a network of the draft's own; `fed`: tokens that these fed, times the network's weights, in
            units of the target's.
    """

    tokens: Int[Array, "B n"]
    cheap: Int[Array, " B"]
    fed: Float[Array, " B"]


@pytree
class Seen:
    """What a pass of the target gave.

    Attributes:
        tokens: the tree that it was fed; `on`: which nodes are on the path that it agrees with, the root among them.
        likely: of each node the target's most likely next tokens, as many as the draft asks for, the likeliest first.
        text: with what was committed; that are the last `new` tokens of it.
        live: rows that took part; of the others the draft's state stays.
    """

    tokens: Int[Array, "B n"]
    on: Bool[Array, "B n"]
    likely: Int[Array, "B n k"]
    text: Text
    new: Int[Array, " B"]
    live: Bool[Array, " B"]


@runtime_checkable
class Draft(Protocol):
    """Guesses at what a causal target says next; a frozen pytree. Leaves of its state lead with B.

    A guess changes what a text costs and never the text: the target's own token is fixed first, and a guess is right
    where it is that token.

    Attributes:
        tree: the shape of what it proposes.
        likely: how many of the target's most likely next tokens it asks for at each node.
    """

    @property
    def tree(self) -> Tree: ...

    @property
    def likely(self) -> int: ...

    def check(self, target: Model, longest: int) -> None:
        """Raises InputError for a target that it was not made for, and for rows of more tokens than it can read."""
        ...

    def empty(self, target: Model, rows: int) -> PartState:
        """The state of rows of which nothing was seen."""
        ...

    def begin(self, state: PartState, text: Text) -> PartState:
        """The state once the prompts were read, before the target's first pass, of which `update` is told."""
        ...

    def propose(self, state: PartState, target: tuple[Model, Params], text: Text, sampling: Sampling) -> Proposed:
        """The next tree of each row."""
        ...

    def update(self, state: PartState, seen: Seen) -> PartState:
        """The state after a pass of the target."""
        ...


def nothing(rows: int) -> dict[str, Any]:
    """What guesses took that came from a table."""
    return {"cheap": jnp.zeros((rows,), jnp.int32), "fed": jnp.zeros((rows,), jnp.float32)}
