"""Published checkpoints (PyTorch's names and layouts) <-> our params: one mapping table per family, one engine."""

from jaxdiff.convert.engine import from_tensors, to_tensors
from jaxdiff.convert.folder import convert, export

__all__ = ["convert", "export", "from_tensors", "to_tensors"]
