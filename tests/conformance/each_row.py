"""All policies of the table in one program: every row has its own."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.policies.base import PolicyBase
from jaxdiff.pytree import number, pytree
from tests import small
from tests.conformance.table import POLICIES

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
    "edit": 0.2,
    "post": 3,
    "passes": 2,
    "sure": 0.9,
    "revoke": 0.4,
}


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


# Without `oracle`, whose tokens are the reference's and no fill's.
_MEANT = {name: each for name, each in POLICIES.items() if name != "oracle"}
PARTS = tuple(build(**{name: NUMBERS[name] for name in numbers}) for build, numbers in _MEANT.values())
ROWS = [(prompt, which) for which in range(len(PARTS)) for prompt in small.PROMPTS[:2]]
WHICH = np.asarray([which for _, which in ROWS])  # the policy of each row


def decode(order=None, **parts):
    """Two prompts for each policy, rows in that order."""
    order = np.arange(len(ROWS)) if order is None else order
    prompts = [prompt for prompt, _ in ROWS]
    return small.decode(prompts=prompts, order=order, policy=EachRow(PARTS, WHICH[order]), **parts)
