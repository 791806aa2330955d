"""The chosen positions in slices: before each slice but the first the whole group runs again over kept keys and values.

The group knows of each other what was written so far, at the cost of its own few columns: no training, and nothing is
fitted.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from jaxdiff.fills.base import FillBase, candidates
from jaxdiff.protocols import Passes
from jaxdiff.pytree import choice, number, pytree
from jaxdiff.types import KV, NEAR_TIE, NEVER, Count, InputError, PartState, Proposal, Score, Written

LONGEST = 2**20  # positions of a block: more than any has
SHUFFLE = 2**30  # what the key of a step is folded with for `order=random`: no pass of it has that number


@pytree
class Recap(FillBase):
    """Cut what a step commits into slices, as even as may be, the first ones larger by one where they are not. The
    first slice gets the candidates of the full pass; before each further one the chosen positions run again, those not
    yet written as masks, and what they say of that slice is taken.

    These passes feed the chosen positions alone (a shifted model's are fed with the column before each). They see each
    other as they are now, and of all else the keys and values of the full pass, which are frozen though they hang on
    what was written since. A row that commits n positions takes min(slices, n) - 1 of them.

    Exact (each slice as a full pass would see it) where nothing else is frozen: in a block that is the whole canvas and
    chosen as a whole, and in a network of one layer, whose keys and values hang on no other column.

    Source: ReCAP (arXiv 2505.19089, liebenxj/ReCAP), which follows a full pass with one local pass. Its ranking, by
    confidence with noise, is that of a policy with `alg_temp`; its groups are of a schedule.

    Attributes:
        slices: how many, at most as many as a block has positions; 1 is `parallel`.
        order: which positions are written first: those of the highest `priority` in the policy's eyes (the published
            order), from `left` to right, or at `random`.
    """

    slices: Count = number(default=2, low=1, high=LONGEST, whole=True)
    order: str = choice(("priority", "left", "random"), default="priority")

    needs = frozenset({KV})

    def init(self, rows: int, window: int) -> PartState:
        """Raises InputError for more slices than a block has positions."""
        del rows
        if not isinstance(self.slices, jax.core.Tracer) and (most := int(np.max(np.asarray(self.slices)))) > window:
            raise InputError(
                f"fill recap slices: found {most} for blocks of {window} positions, expected at most {window}: a slice "
                "holds one or more"
            )
        return ()

    def write(
        self,
        state: PartState,
        score: Score,
        proposal: Proposal,
        commit: Bool[Array, "B W"],
        passes: Passes,
        key: Key[Array, " B"],
    ) -> tuple[Written, PartState]:
        rows = commit.shape[0]
        priority = self._priority(score, proposal, key)
        order = jnp.lexsort((-priority, ~commit), axis=1)  # stable: ties go to the leftmost
        rank = jnp.argsort(order, axis=1, stable=True)
        chosen = jnp.sum(commit, axis=1, dtype=jnp.int32)
        slices = jnp.minimum(jnp.broadcast_to(jnp.asarray(self.slices), (rows,)), chosen)
        number_of = _slice_of(rank, chosen, slices)

        def another(carry: tuple[Int[Array, ""], Written]) -> tuple[Int[Array, ""], Written]:
            index, written = carry
            here, takes_part = commit & (number_of == index), index < slices
            now = jnp.where(commit & (number_of < index), written.token, score.tokens)
            belief, work = passes.group(now, commit & takes_part[:, None], 1 + index)
            return index + 1, Written(
                token=jnp.where(here, belief.token, written.token),
                log_prob=jnp.where(here, belief.log_prob, written.log_prob),
                commit=commit,
                close=written.close | (here & (belief.gap < NEAR_TIE)),
                cheap=written.cheap + takes_part.astype(jnp.int32),
                work=written.work + work,
            )

        first = commit & (number_of == 0)
        contest = _contests(priority, order, number_of) if self.order == "priority" else jnp.zeros_like(commit)
        written = candidates(score, proposal, commit)
        written = dataclasses.replace(written, close=(first & written.close) | (contest & commit))
        most = jnp.max(slices)
        _, written = jax.lax.while_loop(lambda carry: carry[0] < most, another, (jnp.int32(1), written))
        return written, state

    def _priority(self, score: Score, proposal: Proposal, key: Key[Array, " B"]) -> Float[Array, "B W"]:
        """Higher is written first."""
        if self.order == "left":
            return -score.positions.astype(jnp.float32)
        if self.order == "random":
            each = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)))
            own = each(jax.vmap(jax.random.fold_in, (0, None))(key, SHUFFLE), score.positions)
            return jax.vmap(jax.vmap(jax.random.uniform))(own)
        return jnp.nan_to_num(proposal.priority, nan=NEVER, neginf=NEVER)


def _slice_of(rank: Int[Array, "B W"], chosen: Int[Array, " B"], slices: Int[Array, " B"]) -> Int[Array, "B W"]:
    """The slice of each rank, where `chosen` ranks are cut into so many."""
    slices = jnp.maximum(slices, 1)[:, None]
    each, larger = chosen[:, None] // slices, chosen[:, None] % slices
    border = larger * (each + 1)
    return jnp.where(rank < border, rank // (each + 1), larger + (rank - border) // jnp.maximum(each, 1))


def _contests(
    priority: Float[Array, "B W"], order: Int[Array, "B W"], number_of: Int[Array, "B W"]
) -> Bool[Array, "B W"]:
    """The first position of each slice that might as well have stood in the one before: a gap under NEAR_TIE.

    End-of-texts that are put off tie with each other by intent.
    """
    sorted_, slice_of = (jnp.take_along_axis(x, order, axis=1) for x in (priority, number_of))
    close = (slice_of[:, 1:] != slice_of[:, :-1]) & (sorted_[:, :-1] - sorted_[:, 1:] < NEAR_TIE)
    close &= sorted_[:, 1:] > NEVER
    close = jnp.pad(close, ((0, 0), (1, 0)))
    return jnp.take_along_axis(close, jnp.argsort(order, axis=1), axis=1)
