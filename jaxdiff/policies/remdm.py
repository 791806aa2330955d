"""ReMDM: a schedule that also takes commits back (arXiv 2503.00307, kuleshov-group/remdm `diffusion.py`).

A block has `steps` steps; at step i the share of visible positions goes from a_t to a_s (alpha in the paper). A visible
position is remasked with probability sigma, a masked one commits with probability (a_s - (1 - sigma) a_t) / (1 - a_t),
so that a_s are visible on average whatever sigma is. At most sigma_max = min(1, (1 - a_s) / a_t); the classes differ in
sigma, and `loop` in alpha too. The last step commits all that is masked. A block always takes all its steps: what was
committed early may yet be taken back.

With a block as long as the canvas, temperature 1 and top_p 0.9 this is the published sampler.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jaxdiff.policies.base import PER_NAT, PolicyBase
from jaxdiff.policies.order import uniform
from jaxdiff.pytree import number, pytree
from jaxdiff.types import NEAR_TIE, Count, Leaf, PartState, Proposal, Score

MOST = 2**20  # steps

Alpha = Float[Array, " B"]


@pytree
class _Remdm(PolicyBase):
    """What the schedules share; each has `steps` and says its `rates`."""

    steps: Count = number(default=32, low=1, high=MOST, whole=True)

    waits = True
    revises = True

    def budget(self, rows: int, window: int) -> Int[Array, " B"]:
        del window
        return jnp.broadcast_to(jnp.asarray(self.steps), (rows,))

    def rates(self, now: Alpha, after: Alpha) -> tuple[Alpha, Alpha, Alpha]:
        """(a_t, a_s, sigma) of the step from `now` to `after`, shares of the steps that are done, from 0 to 1."""
        raise NotImplementedError

    def select(self, state: PartState, score: Score, key: Key[Array, " B"]) -> tuple[Proposal, PartState]:
        steps = self.budget(score.start.shape[0], 0)
        done = jnp.minimum(jnp.stack([score.block_step, score.block_step + 1]), steps[None])
        now, after = done.astype(jnp.float32) / steps[None].astype(jnp.float32)
        visible, target, sigma = self.rates(now, after)
        most = jnp.where(visible > 0.0, jnp.minimum((1.0 - target) / jnp.maximum(visible, 1e-9), 1.0), 1.0)
        sigma = jnp.minimum(sigma, most)
        commits = (target - (1.0 - sigma) * visible) / jnp.maximum(1.0 - visible, 1e-9)
        commits = jnp.where(after >= 1.0, 1.0, commits)  # nothing stays masked after the last step
        draw = uniform(key, score.positions)
        slack = jnp.where(score.masked, commits[:, None], sigma[:, None]) - draw
        commit = (slack > 0.0) & score.eligible
        proposal = Proposal(
            commit=commit,
            accepted=commit,
            close=jnp.abs(PER_NAT * slack) < NEAR_TIE,
            priority=score.log_odds,
            token=score.token,
            remask=(slack > 0.0) & score.editable,
            edit=jnp.zeros_like(commit),
            hold=score.block_step + 1 < steps,
        )
        return proposal, state


@pytree
class RemdmCap(_Remdm):
    """Sigma = min(cap, sigma_max)."""

    cap: Leaf = number(default=0.008, low=0.0, high=1.0)

    def rates(self, now: Alpha, after: Alpha) -> tuple[Alpha, Alpha, Alpha]:
        return now, after, jnp.broadcast_to(jnp.asarray(self.cap), now.shape)


@pytree
class RemdmRescale(_Remdm):
    """Sigma = rescale * sigma_max."""

    rescale: Leaf = number(default=0.015, low=0.0, high=1.0)

    def rates(self, now: Alpha, after: Alpha) -> tuple[Alpha, Alpha, Alpha]:
        most = jnp.where(now > 0.0, jnp.minimum((1.0 - after) / jnp.maximum(now, 1e-9), 1.0), 1.0)
        return now, after, jnp.asarray(self.rescale) * most


@pytree
class RemdmLoop(_Remdm):
    """Without remasking until the share `alpha` is visible, then sigma = loop at that share, then to the end without.

    Attributes:
        loop: sigma in between.
        alpha: the share that stays visible in between.
        begin, end: shares of the steps at which the loop begins and ends.
    """

    loop: Leaf = number(default=0.02, low=0.0, high=1.0)
    alpha: Leaf = number(default=0.9, low=0.0, high=1.0)
    begin: Leaf = number(default=0.45, low=0.0, high=1.0)
    end: Leaf = number(default=0.95, low=0.0, high=1.0)

    def rates(self, now: Alpha, after: Alpha) -> tuple[Alpha, Alpha, Alpha]:
        begin, alpha = jnp.asarray(self.begin), jnp.asarray(self.alpha)
        end = jnp.maximum(begin, jnp.asarray(self.end))

        def share(done: Alpha) -> Alpha:
            rising = alpha * jnp.minimum(done / jnp.maximum(begin, 1e-9), 1.0)
            return rising + (1.0 - alpha) * jnp.clip((done - end) / jnp.maximum(1.0 - end, 1e-9), 0.0, 1.0)

        looping = (now >= begin) & (after <= end)
        return share(now), share(after), jnp.where(looping, jnp.asarray(self.loop), 0.0)
