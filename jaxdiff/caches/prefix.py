"""Fast-dLLM's prefix cache (arXiv 2505.22618)."""

from __future__ import annotations

from typing import ClassVar

from jaxdiff.caches.base import RefreshedByBlock
from jaxdiff.pytree import pytree


@pytree
class Prefix(RefreshedByBlock):
    """The window is the block and all right of it; rebuilt at each block, and every `refresh` steps inside one.

    Exactness: approximate on a bidirectional model, where what stands left of the block would change with it; exact
    with refresh=1, and where attention is block-causal.
    """

    window: ClassVar[str] = "suffix"

    def exact(self, *, block_causal: bool, prefix_lm: bool) -> bool:
        del prefix_lm
        return block_causal
