"""Guided diffusion: commit what an autoregressive guide agrees with (FlashDLM, arXiv 2505.21467).

The denoiser's candidates fill the masks of the block; a guide reads this draft in one causal pass (`--guide`). From the
block's first mask on, in order, a draft token holds where the guide finds it likely enough, by one of four rules. The
longest prefix that holds is committed, and where that ends:

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
from jaxtyping import Array, Bool, Float, Int, Key

from jaxdiff.policies.base import PER_NAT, PolicyBase, propose
from jaxdiff.pytree import choice, number, pytree
from jaxdiff.types import GREEDY, GUIDE, NEAR_TIE, Count, Guiding, Leaf, PartState, Proposal, Score, per_row

Verdict = tuple[Bool[Array, "B W"], Bool[Array, "B W"]]  # which draft tokens hold; where rounding might say otherwise


@pytree
class Agree(PolicyBase):
    """`rule=argmax`: a draft token holds where it is the guide's most likely one.

    Attributes:
        on_reject: whose token is committed where the prefix ends: the `drafter`'s, if it is empty, or the `guide`'s.
    """

    on_reject: str = choice(("drafter", "guide"), default="drafter")

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        return frozenset({GUIDE} if self.on_reject == "drafter" else {GUIDE, GREEDY})

    def verdict(self, token: Int[Array, "B W"], said: Guiding) -> Verdict:
        """Of each draft token, whatever the others."""
        return token == said.token, said.gap < NEAR_TIE

    def select(self, state: PartState, score: Score, key: Key[Array, " B"]) -> tuple[Proposal, PartState]:
        del key
        assert score.guide is not None
        holds, near = self.verdict(score.token, score.guide)
        refused = score.eligible & ~holds
        reached = jnp.cumsum(refused, axis=1)  # refused ones up to here
        prefix, stop = score.eligible & (reached == 0), refused & (reached == 1)
        first = score.eligible & (jnp.cumsum(score.eligible, axis=1) == 1)
        commit, token = prefix | first, score.token
        if self.on_reject == "guide":
            commit, token = prefix | stop, jnp.where(stop, score.guide.token, token)
            near |= stop & (score.guide.gap < NEAR_TIE)
        near |= stop & (score.gap < NEAR_TIE)  # another draft might have held there
        column = jnp.arange(score.masked.shape[1], dtype=jnp.float32)[None]
        priority = jnp.broadcast_to(-column, score.masked.shape)  # from left to right
        proposal = propose(score, commit, priority, accepted=prefix, token=token)
        return dataclasses.replace(proposal, close=near & (prefix | stop)), state


@pytree
class AgreeTopK(Agree):
    """`rule=topk`: a draft token holds where it is one of the guide's `k` most likely.

    Attributes:
        k: as published.
    """

    k: Count = number(default=5, low=1, high=2**20, whole=True)

    def verdict(self, token: Int[Array, "B W"], said: Guiding) -> Verdict:
        del token
        k = per_row(self.k)
        return said.rank < k, (said.near < NEAR_TIE) & ((said.rank == k) | (said.rank == k - 1))


@pytree
class AgreeRatio(AgreeTopK):
    """`rule=ratio`: as `topk`, and its probability is at least `ratio` of that of the guide's most likely one.

    Attributes:
        k: 5 in the published calls, 2 in the function's defaults.
        ratio: as the function's default.
    """

    ratio: Leaf = number(default=0.5, low=0.0, high=1.0)

    def verdict(self, token: Int[Array, "B W"], said: Guiding) -> Verdict:
        among, near = super().verdict(token, said)
        likely, close = _at_least(said.draft - per_row(self.ratio) * said.top)
        return among & likely, (near & (likely | close)) | (close & (among | near))


@pytree
class AgreeThreshold(Agree):
    """`rule=threshold`: a draft token holds where the guide's probability of it is at least `tau`.

    Attributes:
        tau: as published.
    """

    tau: Leaf = number(default=0.1, low=0.0, high=1.0)

    def verdict(self, token: Int[Array, "B W"], said: Guiding) -> Verdict:
        del token
        return _at_least(said.draft - per_row(self.tau))


def _at_least(slack: Float[Array, "B W"]) -> Verdict:
    """Whether a difference of probabilities is not negative; a NaN is."""
    return slack >= 0.0, jnp.abs(PER_NAT * slack) < NEAR_TIE
