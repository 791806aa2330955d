"""Static trees of drafts: their shape, what their nodes see of each other, and which of them a target agrees with.

Node 0 is the root, the last token of the text; every other node is a guess at what follows its parent. The shape does
not hang on the guesses, so that a pass over a tree is one compiled program.
"""

from __future__ import annotations

import dataclasses
import functools
import heapq
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from jaxdiff.types import HOLE


@dataclasses.dataclass(frozen=True)
class Tree:
    """A shape; n nodes, the root among them, each behind its parent and none before a node of less depth.

    Attributes:
        parents: of each node; -1 of the root.
        ranks: which of its parent's candidates a node is, the likeliest first; 0 of the root.
    """

    parents: tuple[int, ...]
    ranks: tuple[int, ...]

    @property
    def nodes(self) -> int:
        return len(self.parents)

    @functools.cached_property
    def depths(self) -> Int[np.ndarray, " n"]:
        """Edges from the root."""
        found = np.zeros(self.nodes, np.int32)
        for node, parent in enumerate(self.parents[1:], 1):
            found[node] = found[parent] + 1
        return found

    @property
    def depth(self) -> int:
        """The longest path's edges: a pass commits one token more at most."""
        return int(self.depths[-1])

    @functools.cached_property
    def sees(self) -> Bool[np.ndarray, "n n"]:
        """Node i sees node j: itself and those on its way from the root."""
        found = np.eye(self.nodes, dtype=bool)
        for node, parent in enumerate(self.parents[1:], 1):
            found[node] |= found[parent]
        return found

    @functools.cached_property
    def rivals(self) -> Bool[np.ndarray, "n n"]:
        """Nodes i and j have one parent, and j is the likelier."""
        parents, number = np.asarray(self.parents), np.arange(self.nodes)
        return (parents[:, None] == parents) & (number[:, None] > number)

    @property
    def is_chain(self) -> bool:
        return self.depth == self.nodes - 1

    def levels(self) -> list[Int[np.ndarray, " m"]]:
        """The nodes of each depth, from 1 on."""
        return [np.flatnonzero(self.depths == depth) for depth in range(1, self.depth + 1)]


@functools.cache
def chain(nodes: int) -> Tree:
    """One path."""
    return Tree(tuple(range(-1, nodes - 1)), (0,) * nodes)


@functools.cache
def best_first(nodes: int, accept: tuple[float, ...]) -> Tree:
    """The tree of so many nodes that commits most, if a token's candidate of each rank is right with the chance
    `accept`, descending, wherever the token stands.

    The next node is always the one most likely to be reached (DySpec, arXiv 2410.11744), here once for all steps.
    That is right where the target's token is fixed before it is compared, as it is here, not for rejection in rounds.
    """
    chosen: list[tuple[int, int, int]] = [(0, -1, 0)]  # depth, parent, rank
    heap = [(-accept[0], 0, 0)]  # the chance, the parent, the rank; on equal chances the shallower
    while len(chosen) < nodes:
        chance, parent, rank = heapq.heappop(heap)
        chosen.append((chosen[parent][0] + 1, parent, rank))
        heapq.heappush(heap, (chance * accept[0], len(chosen) - 1, 0))
        if rank + 1 < len(accept):
            heapq.heappush(heap, (chance / accept[rank] * accept[rank + 1], parent, rank + 1))
    order = sorted(range(nodes), key=lambda node: (chosen[node][0], node))
    place = {node: number for number, node in enumerate(order)} | {-1: -1}
    return Tree(tuple(place[chosen[node][1]] for node in order), tuple(chosen[node][2] for node in order))


def grow(
    tree: Tree,
    root: Int[Array, " B"],
    before: Int[Array, " B"],
    candidates: Callable[[Int[Array, "B m"], Int[Array, "B m"]], Int[Array, "B m k"]],
) -> Int[Array, "B n"]:
    """The tokens of a tree, level by level, HOLE where there is no guess.

    Args:
        before: the token before the root; HOLE for none.
        candidates: from tokens, and those before them, what may follow, the likeliest first; HOLE for nothing.
    """
    parents, ranks = np.asarray(tree.parents), np.asarray(tree.ranks)
    tokens = jnp.full((root.shape[0], tree.nodes), HOLE, jnp.int32).at[:, 0].set(root)
    for level in tree.levels():
        above = parents[level]
        own, over = tokens[:, above], tokens[:, np.maximum(parents[above], 0)]
        over = jnp.where((parents[above] < 0)[None], before[:, None], over)
        found = jnp.take_along_axis(candidates(own, over), jnp.asarray(ranks[level])[None, :, None], axis=2)[..., 0]
        tokens = tokens.at[:, level].set(jnp.where(own == HOLE, HOLE, found))
    return tokens


def agreed(tree: Tree, tokens: Int[Array, "B n"], said: Int[Array, "B n"]) -> tuple[Bool[Array, "B n"], Array]:
    """The longest path from the root whose tokens are, each, what the target `said` follows its parent.

    Returns which nodes are on it, and the node at each depth [B d+1], where the path is shorter its last.
    """
    parents = np.maximum(np.asarray(tree.parents), 0)
    right = (tokens == said[:, parents]) & (tokens != HOLE)
    # Of siblings with one token the likelier stands for both.
    twice = jnp.any(jnp.asarray(tree.rivals)[None] & (tokens[:, :, None] == tokens[:, None]), axis=2)
    right = (right & ~twice).at[:, 0].set(True)
    on = jnp.all(right[:, None] | ~jnp.asarray(tree.sees)[None], axis=2)
    level = np.arange(tree.depth + 1)[:, None] == tree.depths[None]
    here = on[:, None] & jnp.asarray(level)[None]
    last = jnp.max(jnp.where(on, jnp.arange(tree.nodes, dtype=jnp.int32)[None], 0), axis=1, keepdims=True)
    path = jnp.where(jnp.any(here, axis=2), jnp.argmax(here, axis=2).astype(jnp.int32), last)
    return on, path
