"""Several blocks at a time, each opened before its left neighbour is done (d3LLM's decode, hao-ai-lab/d3LLM).

The window is the whole answer (`block_length` = `gen_length`), cut into blocks of `size`; a forward feeds the canvas
and scores all of the window. At each forward

    opened      one more block, where the last opened one is a share `add` decoded
    fully on    a block whose left neighbour is a share `ready` decoded; the first block always is
    committed   what is open and has an entropy of at most `tau` nats, the least of all that is open in any case, and,
                where the first block that is fully on and has masks would get nothing, its own least

With `add` and `ready` 1 it is `entropy` in blocks of `size`. The published code counts a share in floating point of 64
bits, where 1 - 9/10 falls short of 0.1; here it does not.

In the published code the first end-of-text that is committed ends the row: all right of it becomes end-of-text, opened
or not, and the masks left of it are decoded on. Here blocks go on to be opened, and committed in, right of one until
all left of it is settled (stopper `eos`): what is left of it then sees other tokens there, and what every forward
commits in any case may lie there.

Published with a KV cache too: a block's keys and values are kept from one or two forwards after it was done. No cache
here does so: a cache is told the block that a row stands in (`Place`), which is the whole answer, and not how far it is
decoded, and a pass that recomputes a part of the window has no features for the rest of it to be scored. With a window
so wide `dual` and `block` recompute the whole answer, and only the prompt's keys and values are reused.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Key

from jaxdiff.policies.base import PolicyBase, propose, with_best
from jaxdiff.pytree import InputError, number, pytree
from jaxdiff.types import Count, Leaf, Proposal, Score, per_row

SLACK = 1e-3  # tokens: float32 of share x size lies within it


@pytree
class MultiBlock(PolicyBase):
    """Open blocks left to right before the one before is done; commit by entropy in all that is open.

    Attributes:
        size: tokens of a block; the last one of the window may be shorter.
        add: share of the last opened block that must be decoded for the next one to open.
        ready: share of a block that must be decoded for the next one to get a token in every forward.
        tau: nats; 0.5 as published for LLaDA's maths and code, 0.4 for MBPP.
    """

    size: Count = number(default=32, low=1, high=2**20, whole=True)
    add: Leaf = number(default=0.1, low=0.0, high=1.0)
    ready: Leaf = number(default=0.95, low=0.0, high=1.0)
    tau: Leaf = number(default=0.5, low=0.0, high=1e3)

    blind = True

    def init(self, rows: int, window: int) -> Int[Array, " B"]:
        """How many blocks are open. Raises InputError for a window that is one block."""
        if not isinstance(self.size, jax.core.Tracer) and np.any(np.asarray(self.size) >= window):
            raise InputError(
                f"policy multi_block: found size {np.max(np.asarray(self.size))} and a window of {window}, expected "
                "several blocks in the window; set block_length to gen_length"
            )
        return jnp.ones((rows,), jnp.int32)

    def select(self, state: Int[Array, " B"], score: Score, key: Key[Array, " B"]) -> tuple[Proposal, Int[Array, " B"]]:
        del key
        rows, window = score.eligible.shape
        size, number = per_row(self.size), jnp.arange(window, dtype=jnp.int32)[None]
        block = jnp.broadcast_to(number // size, (rows, window))  # of each position
        # Of each block: its masks, its length (none behind the last), and how much is decoded.
        left = score.eligible.astype(jnp.int32)
        masks = jnp.zeros((rows, window), jnp.int32).at[jnp.arange(rows)[:, None], block].add(left)
        length = jnp.clip(window - number * size, 0, size)
        decoded = (length - masks).astype(jnp.float32) + SLACK

        def has(share: Leaf) -> Bool[Array, "B W"]:
            return decoded >= per_row(share) * length.astype(jnp.float32)

        first = jnp.argmax(masks > 0, axis=1).astype(jnp.int32)
        opened = jnp.where(score.block_step == 0, 1, state)
        adds = jnp.take_along_axis(has(self.add), opened[:, None] - 1, axis=1)[:, 0]
        opened = jnp.minimum(opened + adds.astype(jnp.int32), jnp.sum(length > 0, axis=1, dtype=jnp.int32))
        opened = jnp.maximum(opened, first + 1)  # past blocks that were given whole
        open_ = score.eligible & (block < opened[:, None])

        after = jnp.concatenate([jnp.ones((rows, 1), bool), has(self.ready)[:, :-1]], axis=1)
        fully_on = after & (masks > 0) & (number < opened[:, None])
        own = open_ & (block == jnp.argmax(fully_on, axis=1)[:, None]) & jnp.any(fully_on, axis=1, keepdims=True)

        slack = jnp.where(open_, per_row(self.tau) - score.entropy, jnp.inf)
        sure = open_ & (slack >= 0.0)
        commit, tie = with_best(sure, score.sharpness, open_)
        with_own, own_tie = with_best(commit, score.sharpness, own)
        served = jnp.any(commit & own, axis=1, keepdims=True)
        commit, tie = jnp.where(served, commit, with_own), tie | (own_tie & ~served)
        priority = jnp.where(open_, score.sharpness, -jnp.inf)
        proposal = propose(score, commit, priority, jnp.where(tie, 0.0, slack), accepted=sure)
        return proposal, opened
