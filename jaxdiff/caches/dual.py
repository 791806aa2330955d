"""Fast-dLLM's dual cache (arXiv 2505.22618)."""

from __future__ import annotations

from typing import ClassVar

from jaxdiff.caches.base import RefreshedByBlock
from jaxdiff.pytree import pytree


@pytree
class Dual(RefreshedByBlock):
    """The window is the block alone; all else is rebuilt at each block, and every `refresh` steps inside one.

    Exactness: approximate: prompt, finished blocks and the masks to come stay as the block's first step saw them;
    exact with refresh=1.
    """

    window: ClassVar[str] = "block"
