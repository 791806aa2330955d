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

from jaxdiff.decode.layout import Setup
from jaxdiff.decode.passes import StepPasses
from jaxdiff.decode.resolve import Choice
from jaxdiff.decode.sets import Strip, admitted, backwards, forwards, kind_of, single
from jaxdiff.decode.state import Rows, State
from jaxdiff.decode.tiles import Admitted
from jaxdiff.decode.vocabulary import Vocabulary
from jaxdiff.protocols import Constraint
from jaxdiff.pytree import pytree
from jaxdiff.types import BEGUN, ENDS, NEAR_TIE, NEVER, Place, Proposal, Score, Written


@pytree
class Reached:
    """What of the constraint each row has come to.

    Attributes:
        state: that before the first column of the block that the row stands in: all left of it is written.
        behind: the states behind each block from which all right of it can be completed, blocks counted from the row's
            first one. Nothing there changes while the block is decoded.
    """

    state: Int[Array, " B"]
    behind: Bool[Array, "B n S"]


def begin_text(setup: Setup, constraint: Constraint, rows: Rows, given: Bool[Array, "B L"]) -> Reached:
    """Before the first token."""
    layout, count = setup.layout, rows.origin.shape[0]
    first, window = layout.first_block(rows.origin), layout.block_length
    room = rows.canvas.shape[1] - layout.first + (layout.attention_block if layout.overhang else 0)
    accepts = jnp.asarray(constraint.accepts)

    def block(behind: Bool[Array, "B S"], number: Int[Array, ""]) -> tuple[Bool[Array, "B S"], Bool[Array, "B S"]]:
        strip = _strip(setup, constraint, rows, given, first + number * window, window)
        return backwards(constraint, strip, behind)[0], behind

    numbers = jnp.arange(-(-room // window), dtype=jnp.int32)
    last = jnp.broadcast_to(accepts, (count, *accepts.shape))
    behind = jax.lax.scan(block, last, numbers, reverse=True)[1]
    return Reached(jnp.full((count,), BEGUN, jnp.int32), behind.transpose(1, 0, 2))


def go_on(setup: Setup, constraint: Constraint, state: State, start: Int[Array, " B"]) -> Reached:
    """Before column `start` of each row, the first of the block that it stands in now."""
    following, text = jnp.asarray(constraint.next), state.reached

    def one(carry: tuple[Int[Array, " B"], Int[Array, " B"]]) -> tuple[Int[Array, " B"], Int[Array, " B"]]:
        column, at = carry
        strip = _strip(setup, constraint, state.rows, state.given, column, 1)
        reads = strip.inside[:, 0] & (column < start)
        return jnp.minimum(column + 1, start), jnp.where(reads, following[strip.kind[:, 0], at], at)

    column = jnp.minimum(jnp.maximum(state.start, setup.layout.first_block(state.rows.origin)), start)
    _, at = jax.lax.while_loop(lambda carry: jnp.any(carry[0] < start), one, (column, text.state))
    return dataclasses.replace(text, state=at)


def _strip(
    setup: Setup,
    constraint: Constraint,
    rows: Rows,
    given: Bool[Array, "B L"],
    start: Int[Array, " B"],
    size: int,
    tokens: Int[Array, "B n"] | None = None,
) -> Strip:
    """The columns from `start` on, as they stand on the canvas or with these tokens in them."""
    length = given.shape[1]
    column = jnp.arange(length, dtype=jnp.int32)[None]
    first = jnp.min(jnp.where(given, length, column), axis=1)
    last = jnp.minimum(jnp.max(jnp.where(given, -1, column), axis=1) + 1, rows.last)
    here = start[:, None] + jnp.arange(size, dtype=jnp.int32)[None]
    if tokens is None:
        tokens = jnp.take_along_axis(rows.canvas, jnp.minimum(here, length - 1), axis=1)
    inside = (here >= first[:, None]) & (here < last[:, None])
    # A canvas has no prompt; an answer always has one.
    ends = (rows.origin < setup.layout.first) & bool(_ends(setup))
    return Strip.of(constraint, tokens, setup.model.config.mask_token_id, inside, ends)


def _ends(setup: Setup) -> list[int]:
    """The ids that end an answer and may be predicted."""
    forbidden = Vocabulary.of(setup.model, setup.decoder.sampling).forbidden
    return [token for token in setup.model.config.eos_ids if token not in forbidden]


@dataclasses.dataclass(frozen=True)
class Writing:
    """One step's writing under a constraint; `reached`: before the block."""

    passes: StepPasses
    constraint: Constraint
    reached: Reached
    score: Score
    proposal: Proposal

    def allowed(self, choice: Choice, written: Written, acts: Bool[Array, " B"]) -> tuple[Choice, Written]:
        """What of the choice and of the fill's tokens stands: all of it in rows where it fits.

        Where it does not, one commit at least stands of those that were chosen, so that the bound on the steps holds;
        an edit that does not fit is dropped.
        """
        mask = self.passes.setup.model.config.mask_token_id
        base = jnp.where(choice.remask, mask, self.score.tokens)
        writes = choice.commit | choice.edit
        token = jnp.where(choice.commit, written.token, self.proposal.token)
        unfit = acts & jnp.any(writes, axis=1) & ~self._fits(jnp.where(writes, token, base))
        return jax.lax.cond(
            jnp.any(unfit),
            lambda: self._mended(choice, written, base, unfit),
            lambda: (choice, written),
        )

    def _mended(
        self, choice: Choice, written: Written, base: Int[Array, "B W"], unfit: Bool[Array, " B"]
    ) -> tuple[Choice, Written]:
        """The same in the rows that are `unfit`, on the block as it stands without this step's writing."""
        kinds = self._kinds(base)
        own = written.token
        keeps = self._admits(kinds, own)
        belief = self.passes.believe(
            self.score.hidden, self.passes.columns(), 0, admitted=Admitted(jnp.asarray(self.constraint.of), kinds)
        )
        # Where the head gives none of them mass, any token that fits.
        some = jnp.asarray(self.constraint.example)
        if ends := _ends(self.passes.setup):
            some = some.at[ENDS].set(ends[0])
        other = jnp.where(self._admits(kinds, belief.token), belief.token, some[jnp.argmax(kinds, axis=2)])
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
            fits = self._fits(trial) | ((index == 0) & some)
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

    def _kinds(self, tokens: Int[Array, "B W"]) -> Bool[Array, "B W K"]:
        """The classes with which each column of the block can be part of a text, all else as it stands."""
        strip, behind = self._strip(tokens), self._behind()
        states = single(self.reached.state, behind.shape[1])
        return admitted(
            self.constraint,
            strip,
            forwards(self.constraint, strip, states),
            backwards(self.constraint, strip, behind)[1],
        )

    def _admits(self, kinds: Bool[Array, "B W K"], token: Int[Array, "B W"]) -> Bool[Array, "B W"]:
        kind = kind_of(self.constraint, token)
        return jnp.take_along_axis(kinds, kind[..., None], axis=2)[..., 0]

    def _fits(self, tokens: Int[Array, "B W"]) -> Bool[Array, " B"]:
        """Whether the canvas can be completed with these tokens in the block."""
        before, _ = backwards(self.constraint, self._strip(tokens), self._behind())
        return jnp.take_along_axis(before, self.reached.state[:, None], axis=1)[:, 0]

    def _strip(self, tokens: Int[Array, "B W"]) -> Strip:
        setup, state, place = self.passes.setup, self.passes.state, self.passes.place
        return _strip(setup, self.constraint, state.rows, state.given, place.start, tokens.shape[1], tokens)

    def _behind(self) -> Bool[Array, "B S"]:
        place: Place = self.passes.place
        number = (place.start - place.first) // place.block
        return jnp.take_along_axis(self.reached.behind, number[:, None, None], axis=1)[:, 0]
