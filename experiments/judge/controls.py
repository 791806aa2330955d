"""What a judge is compared with: the same policy, but what is taken back is drawn, or told otherwise."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jaxdiff.policies.filters import Linear
from jaxdiff.policies.judge import Correct, Judge, Memory
from jaxdiff.policies.order import uniform
from jaxdiff.pytree import pytree
from jaxdiff.types import REFERENCE, Score, per_row


def confidence() -> Judge:
    """A judge that doubts what was committed with little confidence: its "wrong" is 1 minus that probability."""
    empty = Judge((), reach=0)
    kernel = jnp.zeros((empty.width, 1)).at[0, 0].set(-8.0)  # the first input is the log-odds, by 8
    return Judge((Linear(kernel, jnp.zeros(1)),), reach=0)


@pytree
class Random(Correct):
    """Each commit is taken back with probability 1 - `tau` in each forward that sees it, until it was once."""

    def slack(self, score: Score, memory: Memory, key: Key[Array, " B"]) -> Float[Array, "B W"]:
        return uniform(key, score.positions) - per_row(self.tau)


@pytree
class Told(Correct):
    """Exactly the commits are taken back that are not the standard decode's."""

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        return frozenset({REFERENCE})

    def slack(self, score: Score, memory: Memory, key: Key[Array, " B"]) -> Float[Array, "B W"]:
        assert score.reference is not None
        return jnp.where(score.tokens != score.reference, 1.0, -1.0)


@pytree
class Again(Correct):
    """Of a puzzle whose letters must differ exactly the commits are taken back that stand there twice."""

    def slack(self, score: Score, memory: Memory, key: Key[Array, " B"]) -> Float[Array, "B W"]:
        place = jnp.arange(score.masked.shape[1])
        same = (score.tokens[:, :, None] == score.tokens[:, None, :]) & ~score.masked[:, None, :]
        return jnp.where(jnp.any(same & self.other(place[:, None], place[None, :]), axis=2), 1.0, -1.0)

    def other(self, own: Int[Array, "W 1"], place: Int[Array, "1 W"]) -> Bool[Array, "W W"]:
        """Beside which places one may not stand again."""
        return place != own


@pytree
class Repeats(Again):
    """The same, but the leftmost stays."""

    def other(self, own: Int[Array, "W 1"], place: Int[Array, "1 W"]) -> Bool[Array, "W W"]:
        return place < own
