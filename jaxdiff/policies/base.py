"""What the policies share: the defaults of the protocol, and the proposal of one that commits alone."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdiff.protocols import Model
from jaxdiff.types import NEAR_TIE, NEVER, UNLIMITED, Params, PartState, Proposal, Score

PER_NAT = 4.0  # a log-odds gap of g moves no probability by more than g / 4


class PolicyBase:
    """A policy without a state that commits in every step and never takes a commit back."""

    blind = False
    waits = False
    revises = False
    needs: frozenset[str] = frozenset()

    def check(self, model: Model, params: Params) -> None:
        del model, params

    def budget(self, rows: int, window: int) -> Int[Array, " B"]:
        del window
        return jnp.full((rows,), UNLIMITED, jnp.int32)

    def init(self, rows: int, window: int) -> PartState:
        del rows, window
        return ()


def propose(
    score: Score,
    commit: Bool[Array, "B W"],
    priority: Float[Array, "B W"],
    slack: Float[Array, "B W"] | None = None,
    *,
    accepted: Bool[Array, "B W"] | None = None,
    token: Int[Array, "B W"] | None = None,
) -> Proposal:
    """The proposal of a policy that only commits.

    Args:
        slack: how far each score lies from the bound that it was compared with, either side; in nats, or `PER_NAT`
            times a difference of probabilities. None: the policy compares with nothing.
        accepted: default what is committed; `token`: default the candidate.
    """
    commit = commit & score.eligible
    none = jnp.zeros_like(commit)
    return Proposal(
        commit=commit,
        accepted=commit if accepted is None else accepted,
        close=none if slack is None else (jnp.abs(slack) < NEAR_TIE) & score.eligible,
        priority=priority,
        token=score.token if token is None else token,
        remask=none,
        edit=none,
        hold=none[:, 0],
    )


def with_best(
    commit: Bool[Array, "B W"], priority: Float[Array, "B W"], among: Bool[Array, "B W"]
) -> tuple[Bool[Array, "B W"], Bool[Array, "B W"]]:
    """The commit with the best `among` some positions, and those left out that rounding might have put in its place."""
    there = jnp.where(among, priority, -jnp.inf)
    best = jnp.arange(there.shape[1])[None] == jnp.argmax(there, axis=1, keepdims=True)
    new = commit | (best & among)
    # What is put off (NEVER) ties with its like by intent.
    close = (jnp.max(there, axis=1, keepdims=True) - there < NEAR_TIE) & (there > NEVER)
    return new, among & ~new & close


def as_committed(proposal: Proposal, score: Score) -> tuple[Bool[Array, "B W"], Bool[Array, "B W"]]:
    """What the loop will commit for a policy that does not wait: its commits, or where it has none the best that is
    eligible; and those left out that rounding might have put in the place of that.
    """
    commit = proposal.commit & score.eligible
    priority = jnp.where(jnp.isfinite(proposal.priority), proposal.priority, NEVER)  # what is no number goes last
    best, tie = with_best(jnp.zeros_like(commit), priority, score.eligible)
    forced = ~jnp.any(commit, axis=1, keepdims=True)
    return jnp.where(forced, best, commit), tie & forced
