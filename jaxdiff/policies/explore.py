"""A learned filter that draws what it commits, and what it saw and drew on the way: what a reward is learned from.

Each masked position of the block is a coin of its own, as in dUltra (arXiv 2512.21446) and in Apple's learned policies
(2512.09106). The filter's distance to its threshold, divided by a temperature, is the coin's log-odds:

    P(commit) = sigmoid((logit - logit(tau)) / temperature)

At a low temperature this is the policy that decodes, `Learned` with the same threshold, but for positions near it; so
that what is learned of the coins is true of the decode. Where a step draws nothing the loop forces the most confident
position, as it does for `Learned`; that hangs on the draws alone, so that the log-probability of a step is that of its
coins.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from jaxdiff.policies.base import PolicyBase, propose
from jaxdiff.policies.filters import Evidence, evidence_of
from jaxdiff.policies.learned import Learned
from jaxdiff.policies.order import uniform
from jaxdiff.pytree import InputError, number, pytree, static
from jaxdiff.types import Leaf, Proposal, Score, per_row


@pytree
class Draws:
    """What the first S steps of each row saw and drew; those from `steps` on are empty."""

    log_odds: Float[Array, "B S W"]
    runner_up: Float[Array, "B S W"]
    entropy: Float[Array, "B S W"]
    masked: Bool[Array, "B S W"]
    block_step: Int[Array, "B S"]
    hidden: Float[Array, "B S W D"]
    open: Bool[Array, "B S W"]  # a coin was tossed here
    commit: Bool[Array, "B S W"]  # and said so; the loop's forced commit is none
    coin: Float[Array, "B S W"]  # its log-odds
    steps: Int[Array, " B"]


@pytree
class Explore(PolicyBase):
    """Commit each position with the probability that the filter's logit gives it; the final state is a `Draws`.

    A row's steps from `steps` on are not recorded, and commit what `Learned` commits: nothing is drawn that is not told
    of, and memory is bounded whatever a row's forwards. A threshold of 0 or 1, at which nothing is drawn, is refused.

    Attributes:
        learned: the filter, and the threshold at which it will decode.
        temperature: of the coins, in units of the filter's logit.
        steps: recorded; `features`: hidden ones that the filter reads, which are recorded too.
    """

    learned: Learned
    temperature: Leaf = number(default=0.25, low=1e-3, high=1e3)
    steps: int = static(default=16)
    features: int = static(default=0)

    def __post_init__(self) -> None:
        tau = self.learned.tau
        if not isinstance(tau, jax.core.Tracer) and not np.all((np.asarray(tau) > 0.0) & (np.asarray(tau) < 1.0)):
            raise InputError(f"tau: found {tau}, expected a number between 0 and 1: at these nothing is drawn")

    def init(self, rows: int, window: int) -> Draws:
        self.learned.filter.check(window)
        steps = (rows, self.steps)
        numbers, flags = jnp.zeros((*steps, window)), jnp.zeros((*steps, window), bool)
        return Draws(
            log_odds=numbers,
            runner_up=numbers,
            entropy=numbers,
            masked=flags,
            block_step=jnp.zeros(steps, jnp.int32),
            hidden=jnp.zeros((*steps, window, self.features)),
            open=flags,
            commit=flags,
            coin=numbers,
            steps=jnp.zeros((rows,), jnp.int32),
        )

    def select(self, state: Draws, score: Score, key: Key[Array, " B"]) -> tuple[Proposal, Draws]:
        seen = evidence_of(score)
        slack = self.learned.slack(seen)
        coin = slack / per_row(self.temperature)
        open_ = score.eligible & (score.prob > 0.0)
        drawn = uniform(key, score.positions) < jax.nn.sigmoid(coin)
        recorded = (score.row_step < self.steps)[:, None]
        commit = open_ & jnp.where(recorded, drawn, slack > 0.0)
        return propose(score, commit, score.log_odds), self._record(state, score, seen, open_, commit, coin)

    def _record(
        self,
        state: Draws,
        score: Score,
        seen: Evidence,
        open_: Bool[Array, "B W"],
        commit: Bool[Array, "B W"],
        coin: Float[Array, "B W"],
    ) -> Draws:
        at = (jnp.arange(score.row_step.shape[0]), score.row_step)  # beyond the last step nothing is written

        def put(old: Array, new: Array) -> Array:
            return old.at[at].set(new, mode="drop")

        return Draws(
            log_odds=put(state.log_odds, seen.log_odds),
            runner_up=put(state.runner_up, seen.runner_up),
            entropy=put(state.entropy, seen.entropy),
            masked=put(state.masked, seen.masked),
            block_step=put(state.block_step, seen.block_step),
            hidden=put(state.hidden, seen.hidden[..., : self.features].astype(jnp.float32)),
            open=put(state.open, open_),
            commit=put(state.commit, commit),
            coin=put(state.coin, coin),
            steps=jnp.minimum(score.row_step + 1, self.steps),
        )
