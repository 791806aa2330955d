"""Stop at the first end-of-text."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Int

from jaxdiff.pytree import pytree
from jaxdiff.types import PartState, Progress, first_end


@pytree
class Eos:
    """End a row once an end-of-text stands where all left of it is settled.

    Settled tokens never change and blocks go left to right, so the text through its first end-of-text is, token for
    token, what decoding the whole canvas gives: this stopper costs no quality under any policy.
    """

    wants_tail = cuts = hides = False

    def init(self, rows: int) -> PartState:
        del rows
        return ()

    def update(self, state: PartState, progress: Progress) -> tuple[Int[Array, " B"], PartState]:
        first = first_end(progress.canvas, progress.generated, progress.eos_ids)
        return jnp.where(first < progress.settled, first + 1, progress.end), state
