"""Which tokens the chosen positions get together: one file per fill."""

from jaxdiff.fills.parallel import Parallel
from jaxdiff.fills.recap import Recap
from jaxdiff.registry import Registry

FILLS = Registry("fill", {"parallel": Parallel, "recap": Recap})

__all__ = ["FILLS", "Parallel", "Recap"]
