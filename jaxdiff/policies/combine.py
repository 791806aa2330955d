"""Policies made of policies: union, intersection, a cap. The first part says whom the loop forces."""

from __future__ import annotations

import dataclasses
import functools
import operator

import jax
from jaxtyping import Array, Bool, Int, Key

from jaxdiff.policies.order import ranks
from jaxdiff.types import Count, NeedsReference, Policy, Proposal, Score, State, number, per_row, pytree


def _select_each(
    parts: tuple[Policy, ...], states: tuple[State, ...], score: Score, key: Key[Array, " B"]
) -> tuple[list[Proposal], tuple[State, ...]]:
    """Every part's own decision; part i draws from the row's key folded with i."""
    proposals, after = [], []
    for i, (part, state) in enumerate(zip(parts, states, strict=True)):
        proposal, state = part.select(state, score, jax.vmap(jax.random.fold_in, (0, None))(key, i))
        proposals.append(proposal)
        after.append(state)
    return proposals, tuple(after)


def _lacks_reference(part: Policy) -> bool:
    return isinstance(part, NeedsReference) and part.lacks_reference


def _bind(part: Policy, reference: Int[Array, "B L"]) -> Policy:
    return part.bind(reference) if isinstance(part, NeedsReference) else part


def _close(proposals: list[Proposal]) -> Bool[Array, "B W"]:
    return functools.reduce(operator.or_, [p.close for p in proposals])


@pytree
class AnyOf:
    """Commit what any part commits. Learn2PD's official decode is `any_of(filter, fixed)`."""

    parts: tuple[Policy, ...]

    @property
    def waits(self) -> bool:
        return all(part.waits for part in self.parts)

    @property
    def lacks_reference(self) -> bool:
        return any(map(_lacks_reference, self.parts))

    def bind(self, reference: Int[Array, "B L"]) -> Policy:
        return dataclasses.replace(self, parts=tuple(_bind(part, reference) for part in self.parts))

    def init(self, rows: int, window: int) -> tuple[State, ...]:
        return tuple(part.init(rows, window) for part in self.parts)

    def select(
        self, state: tuple[State, ...], score: Score, key: Key[Array, " B"]
    ) -> tuple[Proposal, tuple[State, ...]]:
        proposals, state = _select_each(self.parts, state, score, key)
        commit = functools.reduce(operator.or_, [p.commit for p in proposals])
        accepted = functools.reduce(operator.or_, [p.accepted for p in proposals])
        return dataclasses.replace(proposals[0], commit=commit, accepted=accepted, close=_close(proposals)), state


@pytree
class AllOf:
    """Commit what every part commits; where they share nothing, the loop forces the first part's best."""

    parts: tuple[Policy, ...]

    waits = False

    @property
    def lacks_reference(self) -> bool:
        return any(map(_lacks_reference, self.parts))

    def bind(self, reference: Int[Array, "B L"]) -> Policy:
        return dataclasses.replace(self, parts=tuple(_bind(part, reference) for part in self.parts))

    def init(self, rows: int, window: int) -> tuple[State, ...]:
        return tuple(part.init(rows, window) for part in self.parts)

    def select(
        self, state: tuple[State, ...], score: Score, key: Key[Array, " B"]
    ) -> tuple[Proposal, tuple[State, ...]]:
        proposals, state = _select_each(self.parts, state, score, key)
        commit = functools.reduce(operator.and_, [p.commit for p in proposals])
        accepted = functools.reduce(operator.and_, [p.accepted for p in proposals])
        return dataclasses.replace(proposals[0], commit=commit, accepted=accepted, close=_close(proposals)), state


@pytree
class Cap:
    """Commit at most the `k` of highest priority among what the policy commits."""

    policy: Policy
    k: Count = number(low=1, high=2**20, whole=True)

    @property
    def waits(self) -> bool:
        return self.policy.waits

    @property
    def lacks_reference(self) -> bool:
        return _lacks_reference(self.policy)

    def bind(self, reference: Int[Array, "B L"]) -> Policy:
        return dataclasses.replace(self, policy=_bind(self.policy, reference))

    def init(self, rows: int, window: int) -> State:
        return self.policy.init(rows, window)

    def select(self, state: State, score: Score, key: Key[Array, " B"]) -> tuple[Proposal, State]:
        proposal, state = self.policy.select(state, score, key)
        among = proposal.commit & score.eligible
        kept = (ranks(proposal.priority, among) < per_row(self.k)) & among
        return dataclasses.replace(proposal, commit=kept, accepted=kept & proposal.accepted), state


def any_of(*parts: Policy) -> AnyOf:
    return AnyOf(parts)


def all_of(*parts: Policy) -> AllOf:
    return AllOf(parts)


def cap(k: int, policy: Policy) -> Cap:
    return Cap(policy=policy, k=k)  # type: ignore[arg-type]
