"""A step's commits under a constraint that draws by rejection: one after the other, each among the tokens that fit with
those before it, and what they weigh.

    commits, in the policy's order --(tokens by their Gumbel keys, from the tiles)--> allowed? --> the first that is

Where the first token of all is allowed it is the candidate that the policy saw: what fits is what it would have been
without a constraint. A row in which once nothing was allowed weighs nothing, and is not asked about any more.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdiff.constraints import awrs
from jaxdiff.constraints.awrs import Drawn
from jaxdiff.decode.passes import StepPasses
from jaxdiff.decode.reached import Standing
from jaxdiff.decode.resolve import Choice
from jaxdiff.decode.weighted import Tiled
from jaxdiff.protocols import Constraint, Predicate
from jaxdiff.pytree import number_names, pytree
from jaxdiff.types import HOLE, NEVER, PartState, Proposal, Score, Written
from jaxdiff.windows import put


@pytree
class _Sofar:
    """The block with what was drawn, and of each row what that weighs and took."""

    block: Int[Array, "B W"]
    close: Bool[Array, "B W"]
    log_weight: Float[Array, " B"]
    checks: Int[Array, " B"]


@dataclasses.dataclass(frozen=True)
class Rejecting:
    """One step's writing under a constraint with an `estimator`; `reached`: before the block, where it has an
    automaton.
    """

    passes: StepPasses
    constraint: Constraint
    reached: PartState  # a `Reached`
    score: Score
    proposal: Proposal

    def allowed(self, choice: Choice, written: Written, acts: Bool[Array, " B"]) -> tuple[Choice, Written]:
        """The choice as it is, and its tokens drawn; those behind a row's end are the fill's."""
        inside = self.passes.columns() < self.passes.state.rows.last[:, None]
        commit = choice.commit & acts[:, None] & inside
        priority = jnp.nan_to_num(self.proposal.priority, nan=NEVER, neginf=NEVER)
        order = jnp.lexsort((-priority, ~commit), axis=1).astype(jnp.int32)  # stable: ties go to the leftmost
        count = jnp.sum(commit, axis=1, dtype=jnp.int32)
        lanes = jnp.arange(commit.shape[1], dtype=jnp.int32)[None]

        def one(carry: tuple[Int[Array, ""], _Sofar]) -> tuple[Int[Array, ""], _Sofar]:
            index, sofar = carry
            at, among = jax.lax.dynamic_slice_in_dim(order, index, 1, axis=1), index < count
            lost = jnp.isneginf(self.passes.state.log_weight + sofar.log_weight)
            drawn, here = self._drawn(sofar.block, at, among, lost), (lanes == at) & among[:, None]
            new = _Sofar(
                block=jnp.where(here, drawn.token, sofar.block),
                close=sofar.close | (here & drawn.close),
                log_weight=sofar.log_weight + jnp.where(among, drawn.log_weight[:, 0], 0.0),
                checks=sofar.checks + jnp.where(among & ~lost, drawn.checks[:, 0], 0),
            )
            return index + 1, new

        none = jnp.zeros(count.shape, jnp.float32)
        begun = _Sofar(self.score.tokens, jnp.zeros(commit.shape, bool), none, none.astype(jnp.int32))
        _, sofar = jax.lax.while_loop(lambda carry: carry[0] < jnp.max(count), one, (jnp.int32(0), begun))
        token = jnp.where(commit, sofar.block, written.token)
        return choice, dataclasses.replace(
            written,
            token=token,
            log_prob=self._log_prob(token, written),
            close=jnp.where(commit, sofar.close, written.close),
            log_weight=sofar.log_weight,
            checks=sofar.checks,
        )

    def _drawn(
        self, block: Int[Array, "B W"], at: Int[Array, "B 1"], among: Bool[Array, " B"], lost: Bool[Array, " B"]
    ) -> Drawn:
        """A token for one column of each row's block, which stands as all that was drawn before it; of rows that are
        `lost`, any token.
        """
        setup, place = self.passes.setup, self.passes.place
        column = place.start[:, None] + at
        hidden = jnp.take_along_axis(self.score.hidden, at[..., None], axis=1)
        asked = self.passes.asked(hidden, column)
        source = Tiled.of(asked, setup.model.head(setup.params), mesh=setup.layout.mesh)
        tables, kinds = None, None
        if self.constraint.automaton is not None:
            tables = Standing(self.passes, self.constraint.automaton, self.reached)
            kinds = tables.kinds_at(block, at)
        answer, there = self._answer(block), column[:, 0] - setup.layout.first

        def fits(ids: Int[Array, "B 1 n"]) -> Bool[Array, "B 1 n"]:
            ok = jnp.ones(ids.shape, bool)
            if tables is not None and kinds is not None:
                ok = tables.admits(kinds, ids[:, 0])[:, None]
            for predicate in self.constraint.predicates:
                ok &= _passes(predicate, answer, there, ids[:, 0])[:, None]
            return ok | lost[:, None, None]

        estimator = self.constraint.estimator
        assert estimator is not None
        return awrs.draw(source, fits, estimator, among=among[:, None])

    def _answer(self, block: Int[Array, "B W"]) -> Int[Array, "B G"]:
        """What predicates are shown, with these tokens in the block."""
        setup, state = self.passes.setup, self.passes.state
        config, layout, columns = setup.model.config, setup.layout, state.given.shape[1]
        canvas = put(state.rows.canvas, block, self.passes.place.start)
        column = jnp.arange(columns, dtype=jnp.int32)[None]
        canvas = jnp.where(canvas == config.mask_token_id, HOLE, canvas)
        canvas = jnp.where(column < jnp.minimum(state.end, state.rows.last)[:, None], canvas, config.eos_token_id)
        return canvas[:, layout.first : columns - layout.overhang]

    def _log_prob(self, token: Int[Array, "B W"], written: Written) -> Float[Array, "B W"]:
        """Log-softmax of each token before temperature and cuts: another pass over the head where one is another."""

        def named() -> Float[Array, "B W"]:
            belief = self.passes.believe(self.score.hidden, self.passes.columns(), 0, named=token[..., None])
            return jnp.where(token == written.token, written.log_prob, belief.named[..., 0])

        return jax.lax.cond(jnp.any(token != written.token), named, lambda: written.log_prob)


def _passes(
    predicate: Predicate, answer: Int[Array, "B G"], column: Int[Array, " B"], ids: Int[Array, "B n"]
) -> Bool[Array, "B n"]:
    """Whether each of these candidates passes. The predicate's numbers may be those of each row."""
    leaves, structure = jax.tree.flatten(predicate)
    axes = [0 if name and leaf.ndim else None for name, leaf in zip(number_names(predicate), leaves, strict=True)]

    def of_row(
        leaves: list[Any], tokens: Int[Array, " G"], column: Int[Array, ""], ids: Int[Array, " n"]
    ) -> Bool[Array, " n"]:
        own = jax.tree.unflatten(structure, leaves)
        return jax.vmap(own.fits, (None, None, 0))(tokens, column, ids)

    return jax.vmap(of_row, (axes, 0, 0, 0))(leaves, answer, column, ids)
