"""Published checkpoints (PyTorch's names and layouts) <-> our params: one mapping table per family, one engine."""

from jaxdiff.convert.engine import from_tensors, to_tensors

__all__ = ["from_tensors", "to_tensors"]
