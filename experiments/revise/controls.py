"""What `revise` is compared with beside what `experiments/judge/controls.py` has: a pass that is told the answer."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdiff.policies.revise import Revise
from jaxdiff.pytree import pytree
from jaxdiff.types import REFERENCE, Score


@pytree
class Told(Revise):
    """A pass overwrites exactly what is not the standard decode's, with that."""

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        return self.policy.needs | {REFERENCE}

    def rewrite(self, score: Score) -> tuple[Int[Array, "B W"], Float[Array, "B W"]]:
        assert score.reference is not None
        return score.reference, jnp.where(score.tokens != score.reference, 1.0, -1.0)
