"""Any policy with any fill that ships: all policies of the table at once, one in each pair of rows of a program.

`parallel` meets each of them in `test_conformance`.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import Reason
from jaxdiff.fills import FILLS as SHIPPED
from jaxdiff.policies.base import PolicyBase
from jaxdiff.pytree import number, pytree
from tests import small
from tests.conformance.table import FILLS, POLICIES

pytestmark = pytest.mark.usefixtures("strict")
NUMBERS = {
    "tau": 0.3,
    "steps": 3,
    "f": 2.0,
    "gamma": 2.0,
    "cap": 0.3,
    "rescale": 0.5,
    "loop": 0.3,
    "alpha": 0.7,
    "k": 3,
    "size": 3,
    "add": 0.3,
    "ready": 0.7,
}
PROMPTS = small.PROMPTS[:2]


def waiting(score, proposal):
    return jnp.any(score.eligible, axis=1) & ~jnp.any(proposal.commit & score.eligible, axis=1)


@pytree
class EachRow(PolicyBase):
    """Every row has a policy of its own, `which` of the parts; one that waits is taken to hold while it does."""

    parts: tuple
    which: object = number(low=0, high=1000, whole=True)

    revises = True

    @property
    def needs(self):
        return frozenset().union(*(part.needs for part in self.parts))

    def budget(self, rows, window):
        heeded = [int(part.waits or part.revises) for part in self.parts]
        each = [part.budget(rows, window) * own for part, own in zip(self.parts, heeded, strict=True)]
        return self._own(each)

    def init(self, rows, window):
        return tuple(part.init(rows, window) for part in self.parts)

    def select(self, state, score, key):
        decided = [part.select(own, score, key) for part, own in zip(self.parts, state, strict=True)]
        proposals = [
            dataclasses.replace(proposal, hold=proposal.hold | part.waits & waiting(score, proposal))
            for part, (proposal, _) in zip(self.parts, decided, strict=True)
        ]
        return jax.tree.map(lambda *each: self._own(each), *proposals), tuple(own for _, own in decided)

    def _own(self, each):
        return jnp.stack(each)[jnp.asarray(self.which), jnp.arange(each[0].shape[0])]


@pytest.mark.parametrize("fill", [name for name in FILLS if name in SHIPPED.entries and name != "parallel"])
def test_every_policy_with_every_fill(fill):
    """Rules 1 and 2; what each pass commits and costs; and nothing hangs on the rows beside."""
    parts = tuple(build(**{name: NUMBERS[name] for name in numbers}) for build, numbers in POLICIES.values())
    rows = [(prompt, which) for which in range(len(parts)) for prompt in PROMPTS]
    which = np.asarray([which for _, which in rows])

    def decode(order):
        policy = EachRow(parts, which[order])
        return small.decode(
            prompts=[prompt for prompt, _ in rows], order=order, policy=policy, fill=FILLS[fill][0](), temperature=0.5
        )

    result, turned = decode(np.arange(len(rows))), decode(np.arange(len(rows))[::-1])
    tokens, trace = np.asarray(result.tokens)[:, -small.GEN :], np.asarray(result.commit_step)
    assert ((tokens >= 0) & (tokens < small.VOCAB) & (tokens != small.MASK)).all()
    assert (np.asarray(result.reason) == Reason.FULL).all()
    assert np.isfinite(np.asarray(result.log_prob)).all()
    assert (np.asarray(result.log_prob) < 0).all()
    several = 0
    for row, number_of in enumerate(which):
        part, nfe, cheap = parts[number_of], int(result.nfe[row]), int(result.cheap[row])
        bound = 2 * int(np.max(part.budget(1, small.BLOCK))) if part.waits or part.revises else small.GEN
        assert 0 < nfe <= bound
        assert nfe <= float(result.work[row]) <= nfe + cheap
        assert (cheap == 0) == (float(result.work[row]) == nfe)
        assert (trace[row] >= 0).all()
        together = np.unique(trace[row], return_counts=True)[1]
        if not part.revises:
            assert part.waits or len(together) == nfe
            assert (together > 1).any() if cheap else fill == "head" or (together == 1).all()  # it corrects neighbours
        several += (together > 1).any()
    assert several > len(rows) // 2
    alike = (np.asarray(result.near_ties) + np.asarray(turned.near_ties)[::-1]) == 0
    assert alike.sum() > len(rows) // 2
    for field in ("tokens", "commit_step", "nfe", "cheap", "work"):
        np.testing.assert_array_equal(np.asarray(getattr(turned, field))[::-1][alike], getattr(result, field)[alike])
