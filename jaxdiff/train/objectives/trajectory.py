"""Pseudo-trajectory distillation (hao-ai-lab/d3LLM `d3llm_llada_train.py`): the masks are those of a teacher's decode.

The noise `trajectory` masks what the teacher wrote last, in a window and at a share that grow over the run; the loss
is certainty forcing's with the entropy of the first view alone. The published sum is divided by 4, which an optimizer
whose updates have no scale sees in the clip alone; it is not divided here. The targets are the batch's tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiff.pytree import number, pytree
from jaxdiff.train.data import Batch
from jaxdiff.train.noises import TRAJECTORY, View
from jaxdiff.train.objectives.base import Network, ObjectiveBase, Rows
from jaxdiff.train.objectives.certainty import certainty_terms
from jaxdiff.types import Leaf


@pytree
class Trajectory(ObjectiveBase):
    """Cross entropy of every view, plus `beta` times the entropy of right tokens in the first.

    Attributes:
        beta: 2 for LLaDA, 1 for Dream.
        temperature: of the entropy.
    """

    beta: Leaf = number(default=2.0, low=0.0, high=1e3)
    temperature: Leaf = number(default=0.5, low=1e-3, high=1e3)

    noise: ClassVar[str] = "trajectory"
    needs: ClassVar[frozenset[str]] = frozenset({TRAJECTORY})

    def loss(self, network: Network, batch: Batch, views: Sequence[View], teacher: Network | None) -> Float[Array, ""]:
        del teacher
        wrongness, doubt = certainty_terms(network, Rows.of(batch, views), self.temperature)
        count = batch.tokens.shape[0]
        return (jnp.sum(wrongness) + jnp.asarray(self.beta) * jnp.sum(doubt[:count])) / count
