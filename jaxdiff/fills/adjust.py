"""A one-layer drafter runs between the commits of one full pass, so that each token knows those before it (ADJUST)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jaxdiff.fills.base import FillBase, best_of, candidates
from jaxdiff.fills.drafted import BlockDrafter, check_drafter, weights_of
from jaxdiff.protocols import Model, Passes
from jaxdiff.pytree import choice, number, pytree, static
from jaxdiff.types import NEAR_TIE, Count, Leaf, Params, PartState, Proposal, Score, Written


@pytree
class _Draft:
    """How far a step's draft has come.

    Attributes:
        count: passes so far; `going`: the rows that take part in the next one.
        left: chosen positions that are still to be written; the others of the commit are `Written.commit`.
        log_mass: of these, the sum of the full pass's log-probabilities; 0 where nothing is clipped.
    """

    count: Int[Array, ""]
    going: Bool[Array, " B"]
    left: Bool[Array, "B W"]
    hidden: Float[Array, "B W D"]
    log_mass: Float[Array, " B"]
    written: Written


@pytree
class Adjust(FillBase):
    """The chosen positions one after the other, the least entropy first: the first as the full pass has it, each other
    one from a pass of the drafter that has seen all before it. k tokens take k - 1 cheap passes; what a step chose
    beyond k is left for a later one.

    Which positions are chosen is the policy's; in which order they are written is not, for its priorities are of the
    full pass, and entropies are known anew after each cheap one: the published order. Exact where a step commits one
    position, and with `k` of 1. Under guidance the drafter goes on from the guided features.

    Source: ADJUST (arXiv 2509.22738), `jointsampler.py`.

    Attributes:
        k: tokens of a full pass at most.
        stop: nats; a row goes on while the least entropy among what is left is at most this (1.5 in the published
            code); the pass that showed it is counted. None: always.
        clip: `frechet` draws each token within the Frechet bounds that the full pass's marginals put on it, given those
            written before it in this step (an option of the published code); the order stays that of the unclipped.
        drafter, params: the network, and its weights.
        fitted_to: the fingerprint of the model that it was fitted to: of its last norm alone, in bfloat16, so that
            other weights under the same norm (an adapter, int8) pass. None: it is not checked.
    """

    drafter: BlockDrafter = static()
    params: Params
    fitted_to: str | None = static(default=None)
    k: Count = number(default=8, low=1, high=2**20, whole=True)
    stop: Leaf | None = number(default=None, low=0.0, high=float("inf"))
    clip: str = choice(("none", "frechet"), default="none")

    def check(self, model: Model, params: Params) -> None:
        """Raises InputError for another model than the drafter's."""
        check_drafter("adjust", self.drafter.config, self.fitted_to, model, params)

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
        window = commit.shape[1]
        standing, positions = score.tokens, jnp.arange(window, dtype=jnp.int32)[None]
        start = score.start[:, None]
        inside, limit = passes.inside, jnp.minimum(jnp.sum(commit, axis=1, dtype=jnp.int32), jnp.asarray(self.k))
        cost = passes.beside(jnp.sum(inside, axis=1, dtype=jnp.int32), weights_of(self.params))
        sharpest, tied_first = best_of(score.sharpness, commit)
        first = commit & (positions == sharpest)

        def of(features: Float[Array, "B W D"], at: Int[Array, "B 1"]) -> Float[Array, "B 1 D"]:
            return jnp.take_along_axis(features, at[..., None], axis=1)

        def marginal(at: Int[Array, "B 1"], token: Int[Array, "B W"]) -> Float[Array, " B"]:
            if self.clip == "none":
                return jnp.zeros(at.shape[:1], jnp.float32)
            there = jnp.take_along_axis(token, at, axis=1)
            return passes.log_marginal(of(score.hidden, at), start + at, there)[:, 0]

        def drafted(draft: _Draft) -> _Draft:
            """One pass of the drafter, and what it writes in the rows that take part."""
            was, going, tied = draft.written, draft.going, jnp.zeros_like(draft.going)
            now = jnp.where(was.commit, was.token, standing)
            hidden = self.drafter.apply(self.params, draft.hidden, passes.embed(now), score.positions, inside)
            draw = 2 + draft.count
            belief = passes.believe(hidden, start + positions, draw)
            at, close = best_of(belief.sharpness, draft.left)
            if self.stop is not None:
                spare = jnp.asarray(self.stop) - jnp.take_along_axis(belief.entropy, at, axis=1)[:, 0]
                going, tied = going & (spare >= 0.0), going & (jnp.abs(spare) < NEAR_TIE)
            here = draft.left & (positions == at) & going[:, None]
            if self.clip == "frechet":
                belief = passes.believe(of(hidden, at), start + at, draw, within=(of(score.hidden, at), draft.log_mass))
            near = (here & ((belief.gap < NEAR_TIE) | close[:, None])) | (first & tied[:, None])
            written = Written(
                token=jnp.where(here, belief.token, was.token),
                log_prob=jnp.where(here, belief.log_prob, was.log_prob),
                commit=was.commit | here,
                close=was.close | near,
                cheap=was.cheap + draft.going.astype(jnp.int32),
                work=was.work + jnp.where(draft.going, cost, 0.0),
            )
            count, log_mass = draft.count + 1, draft.log_mass + marginal(at, written.token)
            return _Draft(count, going & (count + 1 < limit), draft.left & ~here, hidden, log_mass, written)

        begun = candidates(score, proposal, first)
        begun = dataclasses.replace(begun, close=begun.close | (first & tied_first[:, None]))
        log_mass = marginal(sharpest, begun.token)
        draft = _Draft(jnp.int32(0), limit > 1, commit & ~first, score.hidden, log_mass, begun)
        return jax.lax.while_loop(lambda draft: jnp.any(draft.going), drafted, draft).written, state
