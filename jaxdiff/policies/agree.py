"""Guided diffusion: commit what an autoregressive guide agrees with (FlashDLM, arXiv 2505.21467).

The denoiser's candidates fill the masks of the block; a guide reads this draft in one causal pass (`--guide`). From the
block's first mask on, in order, a draft token holds where the guide finds it likely enough, by one of four rules. The
longest prefix that holds is committed, and behind it one token more, so that a step never commits nothing:

- `on_reject=drafter`, as the paper has it: no more than the prefix, or, where that is empty, the first draft token. The
  guide writes nothing.
- `on_reject=guide`, as the published code has it: the guide's own most likely token at the first disagreement. With
  `rule=argmax` the text is the guide's greedy text, token for token, whatever the denoiser: speculative decoding with a
  denoiser as the drafter.

Source: ZhanqiuHu/flash-dlm-experimental, `guided_diffusion/diff_spec_utils_assisted.py`. What differs on purpose: the
published code verifies in chunks of 32 tokens, here the chunk is the block; where it samples from the guide without the
rejected token (`dynamic_threshold`, and two rules that are not here) the guide's most likely token is written.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from jaxdiff.policies.base import PER_NAT, PolicyBase, propose
from jaxdiff.pytree import choice, number, pytree
from jaxdiff.types import GREEDY, GUIDE, NEAR_TIE, Count, Guiding, Leaf, PartState, Proposal, Score, per_row

ON_REJECT = ("drafter", "guide")
Verdict = tuple[Bool[Array, "B W"], Bool[Array, "B W"]]  # which draft tokens hold; where rounding might say otherwise


class AgreeBase(PolicyBase):
    """A policy with a guide; a class says which draft tokens hold."""

    on_reject: str

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        return frozenset({GUIDE} if self.on_reject == "drafter" else {GUIDE, GREEDY})

    def verdict(self, token: Array, said: Guiding) -> Verdict:
        """Of each draft token, whatever the others."""
        raise NotImplementedError

    def select(self, state: PartState, score: Score, key: Key[Array, " B"]) -> tuple[Proposal, PartState]:
        del key
        assert score.guide is not None
        holds, near = self.verdict(score.token, score.guide)
        refused = score.eligible & ~holds
        before = jnp.cumsum(refused, axis=1) - refused  # refused ones left of it
        prefix = score.eligible & holds & (before == 0)
        stop = refused & (before == 0)
        first = score.eligible & (jnp.cumsum(score.eligible, axis=1) == 1)
        commit, token = prefix | first, score.token
        if self.on_reject == "guide":
            commit, token = prefix | stop, jnp.where(stop, score.guide.token, token)
            near |= stop & (score.guide.gap < NEAR_TIE)
        near |= stop & (score.gap < NEAR_TIE)  # another draft might have held there
        proposal = propose(score, commit, leftmost(score), accepted=prefix, token=token)
        return dataclasses.replace(proposal, close=near & (prefix | stop)), state


@pytree
class Agree(AgreeBase):
    """`rule=argmax`: a draft token holds where it is the guide's most likely one.

    Attributes:
        on_reject: what is committed where none holds: the `drafter`'s token, or the `guide`'s.
    """

    on_reject: str = choice(ON_REJECT, default="drafter")

    def verdict(self, token: Array, said: Guiding) -> Verdict:
        return token == said.token, said.gap < NEAR_TIE


@pytree
class AgreeTopK(AgreeBase):
    """`rule=topk`: a draft token holds where it is one of the guide's `k` most likely.

    Attributes:
        k: as published.
        on_reject: as with `argmax`.
    """

    k: Count = number(default=5, low=1, high=2**20, whole=True)
    on_reject: str = choice(ON_REJECT, default="drafter")

    def verdict(self, token: Array, said: Guiding) -> Verdict:
        return _among(said, per_row(self.k))


@pytree
class AgreeRatio(AgreeBase):
    """`rule=ratio`: as `topk`, and its probability is at least `ratio` of that of the guide's most likely one.

    Attributes:
        k: 5 in the published calls, 2 in the function's defaults.
        ratio: as the function's default.
        on_reject: as with `argmax`.
    """

    k: Count = number(default=5, low=1, high=2**20, whole=True)
    ratio: Leaf = number(default=0.5, low=0.0, high=1.0)
    on_reject: str = choice(ON_REJECT, default="drafter")

    def verdict(self, token: Array, said: Guiding) -> Verdict:
        among, near = _among(said, per_row(self.k))
        likely, close = _at_least(said.draft - per_row(self.ratio) * said.top)
        return among & likely, (near & (likely | close)) | (close & (among | near))


@pytree
class AgreeThreshold(AgreeBase):
    """`rule=threshold`: a draft token holds where the guide's probability of it is at least `tau`.

    Attributes:
        tau: as published.
        on_reject: as with `argmax`.
    """

    tau: Leaf = number(default=0.1, low=0.0, high=1.0)
    on_reject: str = choice(ON_REJECT, default="drafter")

    def verdict(self, token: Array, said: Guiding) -> Verdict:
        return _at_least(said.draft - per_row(self.tau))


def leftmost(score: Score) -> Float[Array, "B W"]:
    """The priority of a policy that goes from left to right."""
    return jnp.broadcast_to(-jnp.arange(score.masked.shape[1], dtype=jnp.float32)[None], score.masked.shape)


def _among(said: Guiding, k: Array) -> Verdict:
    """Whether the draft token is among the k most likely."""
    return said.rank < k, (said.near < NEAR_TIE) & ((said.rank == k) | (said.rank == k - 1))


def _at_least(slack: Float[Array, "B W"]) -> Verdict:
    """Whether a difference of probabilities is not negative; a NaN is."""
    return slack >= 0.0, jnp.abs(PER_NAT * slack) < NEAR_TIE
