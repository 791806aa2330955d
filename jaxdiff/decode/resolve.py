"""What the loop makes of a policy's proposal, and what it commits without one.

proposal -> planted: a seed, where the cache has one -> in_vocabulary -> resolve -> Choice
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool

from jaxdiff.decode.layout import Layout
from jaxdiff.protocols import Policy
from jaxdiff.pytree import pytree
from jaxdiff.types import NEAR_TIE, NEVER, Place, Proposal, Score, Written


def seed_position(layout: Layout, place: Place, columns: int) -> Bool[Array, "B L"]:
    """What a cache that seeds commits as it stores: the first position of the attention block that a row stands in."""
    column = jnp.arange(columns, dtype=jnp.int32)[None]
    return (column == place.whole[:, None]) if layout.seeds else jnp.zeros((place.whole.shape[0], columns), bool)


def planted(proposal: Proposal, score: Score, rows: Bool[Array, " B"]) -> Proposal:
    """The proposal, but that these rows commit what is eligible, their seed, with its candidate."""
    each = rows[:, None]
    return dataclasses.replace(
        proposal,
        commit=jnp.where(each, score.eligible, proposal.commit),
        token=jnp.where(each, score.token, proposal.token),
        hold=proposal.hold & ~rows,
        close=proposal.close & ~each,
    )


@pytree
class Choice:
    """What the loop makes of a proposal. `contest`: which positions commit was a near-tie."""

    commit: Bool[Array, "B W"]
    edit: Bool[Array, "B W"]
    remask: Bool[Array, "B W"]
    holds: Bool[Array, " B"]
    contest: Bool[Array, " B"]

    @property
    def changes(self) -> Bool[Array, " B"]:
        """Which rows this step writes to or takes back from."""
        return jnp.any(self.commit | self.edit | self.remask, axis=1)


def in_vocabulary(proposal: Proposal, score: Score, config: Any) -> Proposal:
    """The proposal without [MASK] and ids outside the vocabulary: a commit takes the candidate in its place, an edit is
    dropped. Otherwise a commit could leave a mask, and the bound on the steps would not hold.
    """
    token = proposal.token
    known = (token >= 0) & (token < config.vocab_size) & (token != config.mask_token_id)
    return dataclasses.replace(proposal, token=jnp.where(known, token, score.token), edit=proposal.edit & known)


def resolve(policy: Policy, proposal: Proposal, score: Score) -> Choice:
    """Commits are of eligible positions alone, edits and remasks of editable ones within the policy's budget; where a
    row would commit nothing, and its policy neither holds nor waits, the best position is forced.
    """
    rows, window = proposal.commit.shape
    heeded = score.block_step < policy.budget(rows, window)
    commit = proposal.commit & score.eligible
    # A NaN ranks last, and nobody who is eligible ranks with those who are not: a broken model still ends.
    finite = jnp.nan_to_num(proposal.priority, nan=NEVER, neginf=NEVER)
    priority = jnp.where(score.eligible, finite, -jnp.inf)
    patient = heeded & (proposal.hold | policy.waits)
    best = jnp.arange(window)[None] == jnp.argmax(priority, axis=1, keepdims=True)
    forced = ~jnp.any(commit, axis=1) & ~patient
    commit = jnp.where(forced[:, None], best & score.eligible, commit)
    lowest_in = jnp.min(jnp.where(commit, priority, jnp.inf), axis=1)
    highest_out = jnp.max(jnp.where(score.eligible & ~commit, priority, -jnp.inf), axis=1)
    put_off = highest_out <= NEVER  # end-of-texts put off tie with each other by intent
    revised = score.editable & heeded[:, None]
    return Choice(
        commit=commit,
        edit=proposal.edit & revised,
        remask=proposal.remask & revised & ~proposal.edit,
        holds=proposal.hold & heeded,
        contest=(jnp.abs(lowest_in - highest_out) < NEAR_TIE) & ~put_off,
    )


def with_written(choice: Choice, written: Written) -> Choice:
    """The choice with what of its commit the fill has written. One that writes nothing of it breaks its contract; the
    bound on the steps holds all the same.
    """
    commit = choice.commit & written.commit
    return dataclasses.replace(choice, commit=jnp.where(jnp.any(commit, axis=1, keepdims=True), commit, choice.commit))
