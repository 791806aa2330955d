"""Into how many gaps a forward inserts: one, as published, or all that are about as sure as the best."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxdiff.pytree import number, pytree
from jaxdiff.registry import Registry
from jaxdiff.types import NEAR_TIE, Leaf, per_row


@runtime_checkable
class Way(Protocol):
    """A frozen pytree of numbers.

    Attributes:
        stop: a row ends once the model says with this probability that its text is whole.
    """

    @property
    def stop(self) -> Leaf: ...

    def beside(
        self, logit: Float[Array, "B S"], best: Float[Array, "B 1"]
    ) -> tuple[Bool[Array, "B S"], Bool[Array, "B S"]]:
        """Into which further gaps something is inserted, and where that hung on less than NEAR_TIE.

        `logit`: of each gap's candidate, in the one softmax over all gaps and tokens; `best`: the likeliest one's.
        """
        ...


@pytree
class One:
    """One token a forward: at temperature 0 the gap with most mass, then its likeliest token, as published for star
    graphs; above, one pair of gap and token drawn from all (ILM, arXiv 2505.05755).

    Attributes:
        stop: a row ends once its text is whole with this probability.
    """

    stop: Leaf = number(default=0.5, low=0.0, high=1.0)

    def beside(
        self, logit: Float[Array, "B S"], best: Float[Array, "B 1"]
    ) -> tuple[Bool[Array, "B S"], Bool[Array, "B S"]]:
        del best
        return jnp.zeros(logit.shape, bool), jnp.zeros(logit.shape, bool)


@pytree
class Parallel:
    """The same, and in that forward the candidate of every gap that is at least `tau` times as likely as the likeliest.

    Not of the paper. What is learned gives each of n missing tokens 1/n, wherever it is missing: a pair that is as
    likely as the likeliest is as sure as that, whatever n is. No gap gets two tokens of one forward, since nothing says
    which comes first, and no token goes into two gaps: of those that want it the surest gets it, since it may be
    missing once, on either side of what stands between them. The gaps may double with each forward, so that n tokens
    take log2 n of them at best.

    Attributes:
        tau: 1 inserts what is exactly as likely as the likeliest, 0 into every gap.
        stop: a row ends once its text is whole with this probability.
    """

    tau: Leaf = number(default=0.5, low=0.0, high=1.0)
    stop: Leaf = number(default=0.5, low=0.0, high=1.0)

    def beside(
        self, logit: Float[Array, "B S"], best: Float[Array, "B 1"]
    ) -> tuple[Bool[Array, "B S"], Bool[Array, "B S"]]:
        slack = logit - best - per_row(jnp.log(jnp.asarray(self.tau)))
        return slack >= 0.0, jnp.abs(slack) < NEAR_TIE


WAYS = Registry("insert", {"one": One, "parallel": Parallel})
