"""Training: objectives, noise, data, loop. It returns the pytree that is a model."""

from jaxdiff.train.distill import Distillation, distill
from jaxdiff.train.recipe import Recipe
from jaxdiff.train.scratch import train

__all__ = ["Distillation", "Recipe", "distill", "train"]
