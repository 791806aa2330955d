"""States of recorded trajectories in pairs, an earlier and a later one: what a step of a drafter's fit is given."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from jaxdiff.pytree import InputError, pytree, static
from jaxdiff.train.fit_filter import kept_apart
from jaxdiff.train.trajectories import LATER, Trajectories
from jaxdiff.windows import take


@pytree
class Windows:
    """Some of the trajectories at some of their states: [B] unless said.

    Attributes:
        first: tokens that the earlier state has; `told`: those that the later one has more.
        start: the first column of the block.
    """

    tokens: Int[Array, "B L"]
    rank: Int[Array, "B L"]
    origin: Int[Array, " B"]
    start: Int[Array, " B"]
    first: Int[Array, " B"]
    told: Int[Array, " B"]
    block: int = static()

    def canvas(self, more: Int[Array, " B"] | Int[Array, ""] | int, mask: int) -> Int[Array, "B L"]:
        """The state with so many tokens more than the earlier one."""
        return jnp.where(self.rank < (self.first + more)[:, None], self.tokens, mask)

    def block_of(self, canvas: Int[Array, "B L"]) -> Int[Array, "B W"]:
        return take(canvas, self.start, self.block)

    def masked(self) -> Bool[Array, "B W"]:
        """What the later state does not have yet, but the trajectory does in the end."""
        rank = self.block_of(self.rank)
        return (rank >= (self.first + self.told)[:, None]) & (rank < LATER)


class Source:
    """Windows of the trajectories, by step: those of the prompts that are fitted, and of those that are kept apart."""

    def __init__(self, trajectories: Trajectories, block: int, k: int, count: int, seed: int) -> None:
        """`k`: at most k - 1 tokens are told of; `count`: windows of a step. Raises InputError for too few prompts."""
        held = kept_apart(trajectories.prompt)
        self.prompts = len(np.unique(trajectories.prompt))
        if held.all() or not held.any():
            raise InputError(f"traces: found {self.prompts} prompts, too few to keep a tenth apart; collect more")
        self._block, self._k, self._count, self._seed = block, k, count, seed
        self._fitted, self._held = (Part.of(trajectories.take(rows)) for rows in (~held, held))
        self.rows = len(self._fitted.rows.tokens)

    def fitted(self, step: int) -> Windows:
        return self._of(self._fitted, 0, step)

    def checked(self, step: int) -> Windows:
        return self._of(self._held, 1, step)

    def _of(self, part: Part, side: int, step: int) -> Windows:
        rng, share = np.random.default_rng([self._seed, side, step]), np.exp(0.5 ** np.arange(self._k - 1))
        picked = rng.integers(len(part.row), size=self._count)
        row, first, rest = part.row[picked], part.first[picked], part.rest[picked]
        depth = 1 + rng.choice(self._k - 1, size=self._count, p=share / share.sum())
        rows = part.rows.take(row)
        arrays = (rows.tokens, rows.rank, rows.origin, part.start[picked], first, np.minimum(depth, rest))
        return Windows(*(jnp.asarray(array, jnp.int32) for array in arrays), block=self._block)


@dataclasses.dataclass(frozen=True)
class Part:
    """All states of some trajectories at which the row's block has two masks at least."""

    rows: Trajectories
    row: Int[np.ndarray, " n"]
    first: Int[np.ndarray, " n"]  # tokens that the state has
    start: Int[np.ndarray, " n"]  # of the block that the next one goes to
    rest: Int[np.ndarray, " n"]  # tokens that may be told of, so that a mask is left in that block

    @classmethod
    def of(cls, rows: Trajectories) -> Part:
        """Raises InputError where there is no such state."""
        there = (rows.rank >= 0) & (rows.rank < LATER)
        row, column = np.nonzero(there)
        rank, start = rows.rank[row, column], rows.start[row, column]
        last = np.zeros_like(rows.rank)
        np.maximum.at(last, (row, start), rank)
        rest = last[row, start] - rank
        kept = rest > 0
        if not kept.any():
            raise InputError("traces: found no block of two tokens or more; collect with larger blocks")
        return cls(rows, row[kept], rank[kept], start[kept], rest[kept])
