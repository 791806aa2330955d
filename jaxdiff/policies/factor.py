"""Commit as many as their confidences can bear together (Fast-dLLM, arXiv 2505.22618).

Two rules are published under this name. Write c_n for the n-th highest probability among a block's T masks. Both commit
the most confident position in any case; they differ in the last one.

    paper   the largest n with (n + 1) (1 - c_n) <= f, as theorem 1 has it
    code    NVlabs/Fast-dLLM `llada/generate.py`: as `paper`, but where ranks 1 to T - 1 pass, rank T is committed as
            well, however unsure it is: of two masks that are left, both

So `code` takes fewer forwards, and other tokens. The default is `paper`; compare speeds that others have published with
`code`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from jaxdiff.policies.base import PER_NAT, PolicyBase, propose
from jaxdiff.policies.order import in_order, ranks
from jaxdiff.pytree import number, pytree
from jaxdiff.types import Leaf, PartState, Proposal, Score, per_row


@pytree
class Factor(PolicyBase):
    """Commit the largest n with (n + 1) (1 - c_n) <= `f`, c_n the n-th highest probability; the loop forces the first.

    1 - c falls out of the log-odds without cancellation.
    """

    f: Leaf = number(default=1.0, low=0.0, high=1e6)

    def select(self, state: PartState, score: Score, key: Key[Array, " B"]) -> tuple[Proposal, PartState]:
        del key
        rank = ranks(score.log_odds, score.eligible)
        doubt = jax.nn.sigmoid(-score.log_odds)
        slack = per_row(self.f) / (rank + 2).astype(jnp.float32) - doubt
        return propose(score, slack >= 0.0, score.log_odds, PER_NAT * slack), state


@pytree
class FactorCode(Factor):
    """As the published code: the first is always in, and the last is in wherever all before it are."""

    def select(self, state: PartState, score: Score, key: Key[Array, " B"]) -> tuple[Proposal, PartState]:
        del key
        rank = ranks(score.log_odds, score.eligible)
        doubt = jax.nn.sigmoid(-score.log_odds)
        slack = jnp.where(rank == 0, jnp.inf, per_row(self.f) / (rank + 2).astype(jnp.float32) - doubt)
        before = jnp.roll(in_order(slack, rank), 1, axis=1)  # column k: of rank k - 1, which is surer
        last = rank == jnp.sum(score.eligible, axis=1, keepdims=True, dtype=jnp.int32) - 1
        slack = jnp.where(last & (rank > 0), jnp.take_along_axis(before, rank, axis=1), slack)
        # A candidate without mass (an end-of-text put off to the last) is never vouched for.
        return propose(score, (slack >= 0.0) & (score.prob > 0.0), score.log_odds, PER_NAT * slack), state
