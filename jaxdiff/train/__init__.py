"""Training: objectives, noise, data, loop. It returns the pytree that is a model."""

from jaxdiff.train.recipe import Recipe
from jaxdiff.train.scratch import train

__all__ = ["Recipe", "train"]
