"""No stopper."""

from __future__ import annotations

from jaxtyping import Array, Int

from jaxdiff.pytree import pytree
from jaxdiff.types import PartState, Progress


@pytree
class NoStop:
    """Decode the whole canvas."""

    wants_tail = cuts = hides = False

    def init(self, rows: int) -> PartState:
        del rows
        return ()

    def update(self, state: PartState, progress: Progress) -> tuple[Int[Array, " B"], PartState]:
        return progress.end, state
