"""A fill for tests: the chosen positions one after the other, each from a cheap pass that sees those before it."""

import jax
import jax.numpy as jnp

from jaxdiff.fills.base import FillBase
from jaxdiff.pytree import choice, pytree
from jaxdiff.types import KV, NEAR_TIE, Written
from jaxdiff.windows import put, take


@pytree
class LeftToRight(FillBase):
    """Every chosen position is scored anew, left to right, with what this step has written so far in its place.

    `how`: over the whole canvas, or over the block (`window`).
    """

    how: str = choice(("canvas", "window"), default="window")

    @property
    def needs(self):
        return frozenset() if self.how == "canvas" else frozenset({KV})

    def init(self, rows, window):
        return ()

    def write(self, state, score, proposal, commit, passes, key):
        rows, window = commit.shape
        first = jnp.argsort(~commit, axis=1, stable=True)  # the chosen ones, left to right, then the others
        rank = jnp.argsort(first, axis=1)
        count = jnp.sum(commit, axis=1, dtype=jnp.int32)

        def one(index, written):
            now = jnp.where(rank < index, written.token, score.tokens)
            draw = 2 + index
            belief, work = (
                passes.window(now, draw)
                if self.how == "window"
                else passes.canvas(put(score.canvas, now, score.start), draw)
            )
            here = commit & (rank == index)

            def where(new, old):
                return jnp.where(here, new, old)

            takes_part = index < count
            return Written(
                token=where(belief.token, written.token),
                log_prob=where(belief.log_prob, written.log_prob),
                commit=commit,
                close=where(belief.gap < NEAR_TIE, written.close),
                cheap=written.cheap + takes_part.astype(jnp.int32),
                work=written.work + jnp.where(takes_part, work, 0.0),
            )

        nothing = Written(
            token=proposal.token,
            log_prob=jnp.zeros((rows, window)),
            commit=commit,
            close=jnp.zeros((rows, window), bool),
            cheap=jnp.zeros((rows,), jnp.int32),
            work=jnp.zeros((rows,)),
        )
        return jax.lax.fori_loop(0, jnp.max(count), one, nothing), state


@pytree
class Again(FillBase):
    """The chosen positions from one more pass, which sees what the full pass saw and draws its noise."""

    needs = frozenset({KV})

    def init(self, rows, window):
        return ()

    def write(self, state, score, proposal, commit, passes, key):
        belief, work = passes.window(take(score.canvas, score.start, commit.shape[1]), 0)
        written = Written(
            token=belief.token,
            log_prob=belief.log_prob,
            commit=commit,
            close=commit & (belief.gap < NEAR_TIE),
            cheap=jnp.ones_like(score.start),
            work=work,
        )
        return written, state
