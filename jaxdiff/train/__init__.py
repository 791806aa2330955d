"""Training: objective, data, loop. It returns the pytree that is a model."""

from jaxdiff.train.loop import train
from jaxdiff.train.recipe import Recipe

__all__ = ["Recipe", "train"]
