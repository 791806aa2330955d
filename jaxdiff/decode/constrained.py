"""A step's commits and edits under a constraint: what may stand, so that the canvas can still become one of its texts.

    written, edits --(one scan of the block)--> all fit: they stand, and nothing else was done
                                            --> a row's do not: its candidates among the tokens that fit,
                                                written one after the other, each checked with those before it

Invariant: before and after each step some completion of the holes is a text of the constraint. An answer's text is what
stands before its first end, and may be over before the last column; a canvas' is what stands from its first hole to its
last one, to the column. The policy sees the belief as it is.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdiff.decode.passes import StepPasses
from jaxdiff.decode.reached import Reached, Standing, ends_of
from jaxdiff.decode.resolve import Choice
from jaxdiff.decode.tiles import Admitted
from jaxdiff.protocols import Constraint
from jaxdiff.types import ENDS, NEAR_TIE, NEVER, Proposal, Score, Written


@dataclasses.dataclass(frozen=True)
class Writing:
    """One step's writing under a constraint; `reached`: before the block."""

    passes: StepPasses
    constraint: Constraint
    reached: Reached
    score: Score
    proposal: Proposal

    @property
    def standing(self) -> Standing:
        automaton = self.constraint.automaton
        assert automaton is not None  # predicates alone are for draws by rejection
        return Standing(self.passes, automaton, self.reached)

    def allowed(self, choice: Choice, written: Written, acts: Bool[Array, " B"]) -> tuple[Choice, Written]:
        """What of the choice and of the fill's tokens stands: all of it in rows where it fits.

        Where it does not, one commit at least stands of those that were chosen, so that the bound on the steps holds;
        an edit that does not fit is dropped.
        """
        mask = self.passes.setup.model.config.mask_token_id
        base = jnp.where(choice.remask, mask, self.score.tokens)
        writes = choice.commit | choice.edit
        token = jnp.where(choice.commit, written.token, self.proposal.token)
        unfit = acts & jnp.any(writes, axis=1) & ~self.standing.fits(jnp.where(writes, token, base))
        return jax.lax.cond(
            jnp.any(unfit),
            lambda: self._mended(choice, written, base, unfit),
            lambda: (choice, written),
        )

    def _mended(
        self, choice: Choice, written: Written, base: Int[Array, "B W"], unfit: Bool[Array, " B"]
    ) -> tuple[Choice, Written]:
        """The same in the rows that are `unfit`, on the block as it stands without this step's writing."""
        automaton, kinds = self.standing.automaton, self.standing.kinds(base)
        own = written.token
        keeps = self.standing.admits(kinds, own)
        belief = self.passes.believe(
            self.score.hidden, self.passes.columns(), 0, admitted=Admitted(jnp.asarray(automaton.of), kinds)
        )
        # Where the head gives none of them mass, any token that fits.
        some = jnp.asarray(automaton.example)
        if ends := ends_of(self.passes.setup):
            some = some.at[ENDS].set(ends[0])
        other = jnp.where(self.standing.admits(kinds, belief.token), belief.token, some[jnp.argmax(kinds, axis=2)])
        new = jnp.where(keeps | ~jnp.any(kinds, axis=2), own, other)
        commit, edit, tie = self._one_by_one(choice, new, base, unfit)
        each = unfit[:, None]
        changed = each & commit & (new != own)
        written = dataclasses.replace(
            written,
            token=jnp.where(changed, new, own),
            log_prob=jnp.where(changed, belief.log_prob, written.log_prob),
            close=jnp.where(changed, belief.gap < NEAR_TIE, written.close) | (each & tie),
        )
        commit, edit = jnp.where(each, commit, choice.commit), jnp.where(each, edit, choice.edit)
        choice = dataclasses.replace(choice, commit=commit, edit=edit)
        # Where nothing stands, the next forward would say the same.
        return dataclasses.replace(choice, holds=choice.holds & (choice.changes | ~unfit)), written

    def _one_by_one(
        self, choice: Choice, new: Int[Array, "B W"], base: Int[Array, "B W"], rows: Bool[Array, " B"]
    ) -> tuple[Bool[Array, "B W"], Bool[Array, "B W"], Bool[Array, "B W"]]:
        """Commits by their priority, then edits: those that fit with all before them; and where the order of two
        commits hung on less than NEAR_TIE and one was left out.
        """
        priority = jnp.nan_to_num(self.proposal.priority, nan=NEVER, neginf=NEVER)
        group = jnp.where(choice.commit, 0, jnp.where(choice.edit, 1, 2))
        order = jnp.lexsort((-priority, group), axis=1).astype(jnp.int32)  # stable: ties go to the leftmost
        count = jnp.sum(rows[:, None] & (choice.commit | choice.edit), axis=1, dtype=jnp.int32)
        target = jnp.where(choice.commit, new, self.proposal.token)
        lanes = jnp.arange(base.shape[1], dtype=jnp.int32)[None]
        some = jnp.any(choice.commit, axis=1)

        def one(
            carry: tuple[Int[Array, ""], Int[Array, "B W"], Bool[Array, "B W"]],
        ) -> tuple[Int[Array, ""], Int[Array, "B W"], Bool[Array, "B W"]]:
            index, now, stands = carry
            here = lanes == jax.lax.dynamic_slice_in_dim(order, index, 1, axis=1)
            trial = jnp.where(here, target, now)
            fits = self.standing.fits(trial) | ((index == 0) & some)
            here &= (fits & (index < count))[:, None]
            return index + 1, jnp.where(here, trial, now), stands | here

        begun = (jnp.int32(0), base, jnp.zeros(base.shape, bool))
        stands = jax.lax.while_loop(lambda carry: carry[0] < jnp.max(count), one, begun)[2]
        left = jnp.any(choice.commit & ~stands, axis=1, keepdims=True)
        return choice.commit & stands, choice.edit & stands, left & self._ties(priority, choice.commit, order)

    def _ties(
        self, priority: Float[Array, "B W"], commit: Bool[Array, "B W"], order: Int[Array, "B W"]
    ) -> Bool[Array, "B W"]:
        """Commits that follow another in their order by less than NEAR_TIE; what is put off ties by intent."""
        ranked, chosen = (jnp.take_along_axis(x, order, axis=1) for x in (priority, commit))
        close = (ranked[:, :-1] - ranked[:, 1:] < NEAR_TIE) & (ranked[:, 1:] > NEVER) & chosen[:, 1:]
        return jnp.take_along_axis(jnp.pad(close, ((0, 0), (1, 0))), jnp.argsort(order, axis=1), axis=1)
