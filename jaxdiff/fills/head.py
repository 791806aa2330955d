"""A sampler head reads the token to the left and the position's features, left to right over the chosen positions."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Key

from jaxdiff.fills.base import FillBase, candidates, highest
from jaxdiff.fills.drafted import TokenDrafter, check_drafter, weights_of
from jaxdiff.protocols import Model, Passes
from jaxdiff.pytree import number, pytree, static
from jaxdiff.types import NEAR_TIE, Count, Params, PartState, Proposal, Score, Written, per_row


@pytree
class Head(FillBase):
    """The chosen positions from left to right. One whose left neighbour was written in this step gets its token from a
    pass of the head, which corrects its features by that neighbour's token; the others keep the full pass's candidate,
    which knew all that stands left of them. At most k positions, those of highest priority; the rest of what a step
    chose is left for a later one.

    A pass is of one position, and attends to nothing. Exact where a step commits one position, with `k` of 1, and where
    no two of the chosen positions are neighbours (then it is `parallel`).

    Source: the sampler head of "Your LLM knows the future" (arXiv 2507.11851), there over a run of masks behind an
    autoregressive model.

    Attributes:
        k: tokens of a full pass at most.
        drafter, params: the network, and its weights.
        fitted_to: the fingerprint of the model that it was fitted to: of its last norm alone, in bfloat16, so that
            other weights under the same norm (an adapter, int8) pass. None: it is not checked.
    """

    drafter: TokenDrafter = static()
    params: Params
    fitted_to: str | None = static(default=None)
    k: Count = number(default=8, low=1, high=2**20, whole=True)

    def check(self, model: Model, params: Params) -> None:
        """Raises InputError for another model than the head's."""
        check_drafter("head", self.drafter.config, self.fitted_to, model, params)

    def write(
        self,
        state: PartState,
        score: Score,
        proposal: Proposal,
        commit: Bool[Array, "B W"],
        passes: Passes,
        key: Key[Array, " B"],
    ) -> tuple[Written, PartState]:
        del key
        chosen, contest = highest(proposal.priority, commit, per_row(self.k))
        positions = jnp.arange(commit.shape[1], dtype=jnp.int32)[None]
        behind = jnp.pad(chosen, ((0, 0), (1, 0)))[:, :-1] & chosen  # those that follow another
        order = jnp.argsort(~behind, axis=1, stable=True).astype(jnp.int32)  # they, left to right, then the others
        count = jnp.sum(behind, axis=1, dtype=jnp.int32)
        cost = passes.beside(jnp.ones_like(count), weights_of(self.params))

        def one(index: Int[Array, ""], was: Written) -> Written:
            at = jax.lax.dynamic_slice_in_dim(order, index, 1, axis=1)
            left = jnp.take_along_axis(was.token, jnp.maximum(at - 1, 0), axis=1)
            hidden = jnp.take_along_axis(score.hidden, at[..., None], axis=1)
            hidden = self.drafter.apply(self.params, hidden, passes.embed(left))
            belief = passes.believe(hidden, score.start[:, None] + at, 2 + index)
            takes_part = index < count
            here = (positions == at) & takes_part[:, None]
            return Written(
                token=jnp.where(here, belief.token, was.token),
                log_prob=jnp.where(here, belief.log_prob, was.log_prob),
                commit=was.commit,
                close=was.close | (here & (belief.gap < NEAR_TIE)),
                cheap=was.cheap + takes_part.astype(jnp.int32),
                work=was.work + jnp.where(takes_part, cost, 0.0),
            )

        start = candidates(score, proposal, chosen)
        start = dataclasses.replace(start, close=(start.close & ~behind) | (chosen & contest[:, None]))
        return jax.lax.fori_loop(0, jnp.max(count), one, start), state
