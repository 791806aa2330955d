"""Policies made of policies: union, intersection, a cap. The first part says whom the loop forces.

The parts commit; what a part would edit, remask or hold is taken over from the first part alone, since two parts may
take back what the other commits. A combination of others that revise is refused when it is made.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Key

from jaxdiff.policies.order import ranks
from jaxdiff.protocols import Model, Policy
from jaxdiff.pytree import InputError, number, pytree
from jaxdiff.types import Count, Params, PartState, Proposal, Score, per_row


class _Combined:
    """What a policy takes over from its parts."""

    parts: tuple[Policy, ...]

    @property
    def blind(self) -> bool:
        return all(part.blind for part in self.parts)

    @property
    def waits(self) -> bool:
        return all(part.waits for part in self.parts)

    @property
    def revises(self) -> bool:
        return self.parts[0].revises

    @property
    def needs(self) -> frozenset[str]:
        return frozenset().union(*(part.needs for part in self.parts))

    def check(self, model: Model, params: Params) -> None:
        for part in self.parts:
            part.check(model, params)

    def budget(self, rows: int, window: int) -> Int[Array, " B"]:
        budgets = [part.budget(rows, window) for part in self.parts if part.waits or part.revises]
        return functools.reduce(jnp.maximum, budgets or [self.parts[0].budget(rows, window)])

    def init(self, rows: int, window: int) -> tuple[PartState, ...]:
        return tuple(part.init(rows, window) for part in self.parts)


@pytree
class _Joined(_Combined):
    """Several policies decide on the same score; part i draws from the row's key folded with i."""

    parts: tuple[Policy, ...]  # type: ignore[override]

    how: ClassVar[Callable]  # joins the parts' commits and what they accept: or, and

    def __post_init__(self) -> None:
        if not self.parts:
            raise InputError("policy: found a combination of nothing, expected at least one policy")
        if any(part.revises for part in self.parts[1:]):
            raise InputError("policy: found a part that takes commits back behind the first; put it first")

    def select(self, state: PartState, score: Score, key: Key[Array, " B"]) -> tuple[Proposal, PartState]:
        decided = [
            part.select(own, score, jax.vmap(jax.random.fold_in, (0, None))(key, i))
            for i, (part, own) in enumerate(zip(self.parts, state, strict=True))
        ]
        proposals, states = zip(*decided, strict=True)

        def joined(by: Callable, name: str) -> Bool[Array, "B W"]:
            return functools.reduce(by, [getattr(proposal, name) for proposal in proposals])

        commit = joined(self.how, "commit")
        # Where the others refuse all that the first would commit before it waits, its block is not at that point yet.
        wanted, given = (jnp.any(each & score.eligible, axis=1) for each in (proposals[0].commit, commit))
        joint = dataclasses.replace(
            proposals[0],
            commit=commit,
            hold=proposals[0].hold & (given | ~wanted),
            accepted=joined(self.how, "accepted"),
            close=joined(operator.or_, "close"),
        )
        return joint, states


@pytree
class AnyOf(_Joined):
    """Commit what any part commits. Learn2PD's official decode is `any_of(filter, fixed)`."""

    how: ClassVar[Callable] = operator.or_


@pytree
class AllOf(_Joined):
    """Commit what every part commits; where they share nothing, the loop forces the first part's best."""

    how: ClassVar[Callable] = operator.and_
    waits = False


@pytree
class Cap(_Combined):
    """Commit at most the `k` of highest priority among what the policy commits."""

    policy: Policy
    k: Count = number(low=1, high=2**20, whole=True)

    @property
    def parts(self) -> tuple[Policy, ...]:  # type: ignore[override]
        return (self.policy,)

    def select(self, state: PartState, score: Score, key: Key[Array, " B"]) -> tuple[Proposal, PartState]:
        proposal, own = self.policy.select(state[0], score, key)
        among = proposal.commit & score.eligible
        kept = (ranks(proposal.priority, among) < per_row(self.k)) & among
        return dataclasses.replace(proposal, commit=kept, accepted=kept & proposal.accepted), (own,)


def any_of(*parts: Policy) -> AnyOf:
    return AnyOf(parts)


def all_of(*parts: Policy) -> AllOf:
    return AllOf(parts)


def cap(k: int, policy: Policy) -> Cap:
    return Cap(policy=policy, k=k)  # type: ignore[arg-type]
