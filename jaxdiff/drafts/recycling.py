"""Token Recycling (arXiv 2408.08696; Luowaterbi/TokenRecycling): what the target last said may follow each token."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from jaxdiff.decode.decoder import Sampling
from jaxdiff.drafts.base import Proposed, Seen, Text, nothing
from jaxdiff.drafts.tree import Tree, best_first, grow
from jaxdiff.protocols import Model
from jaxdiff.pytree import choice, pytree
from jaxdiff.types import HOLE, Params, PartState

NODES = ("2", "4", "8", "16", "32", "64", "128")
ACCEPT = (0.55, 0.15, 0.08, 0.05, 0.03, 0.02, 0.015, 0.01)  # of a rank: what shapes the tree, and nothing more


@pytree
class Recycling:
    """A matrix of the last 8 most likely successors of each token, looked up from the root on, level by level.

    Every pass of the target writes those of all tokens that it was fed, the prompt's and wrong guesses too: that is the
    recycling. A matrix is empty at first, or that of an earlier call (`speculate(warm=)`). Of equal tokens in a pass
    the last on the accepted path is kept, else the last of all.

    Attributes:
        nodes: of the tree, the root among them: tokens that a pass of the target feeds.
    """

    nodes: str = choice(NODES, default="32")

    @property
    def tree(self) -> Tree:
        return best_first(int(self.nodes), ACCEPT)

    @property
    def likely(self) -> int:
        return len(ACCEPT)

    def check(self, target: Model, longest: int) -> None:
        del target, longest

    def empty(self, target: Model, rows: int) -> Int[Array, "B V k"]:
        return jnp.full((rows, target.config.vocab_size, self.likely), HOLE, jnp.int32)

    def begin(self, state: PartState, text: Text) -> PartState:
        del text
        return state

    def propose(
        self, state: Int[Array, "B V k"], target: tuple[Model, Params], text: Text, sampling: Sampling
    ) -> Proposed:
        del target, sampling
        row = jnp.arange(state.shape[0], dtype=jnp.int32)[:, None]

        def candidates(token: Int[Array, "B m"], before: Int[Array, "B m"]) -> Int[Array, "B m k"]:
            del before
            return state[row, jnp.maximum(token, 0)]

        root = text.at(text.known[:, None] - 1)[:, 0]
        return Proposed(grow(self.tree, root, root, candidates), **nothing(state.shape[0]))

    def update(self, state: Int[Array, "B V k"], seen: Seen) -> Int[Array, "B V k"]:
        count = seen.tokens.shape[1]
        order = jnp.where(seen.on, count, 0) + np.arange(count, dtype=np.int32)[None]
        same = seen.tokens[:, :, None] == seen.tokens[:, None]
        best = jnp.all(~same | (order[:, None] <= order[:, :, None]), axis=2)
        written = best & seen.live[:, None] & (seen.tokens != HOLE)
        row = jnp.arange(state.shape[0], dtype=jnp.int32)[:, None]
        at = jnp.where(written, seen.tokens, state.shape[1])  # of the others: dropped
        return state.at[row, at].set(seen.likely, mode="drop")
