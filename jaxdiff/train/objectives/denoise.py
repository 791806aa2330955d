"""Cross entropy on what is to be learned: the objective of a masked diffusion model (LLaDA, arXiv 2502.09992).

With t ~ U(0, 1), a share t of the answer masked and the cross entropy divided by the masks, it is LLaDA's supervised
fine-tuning loss (noise `uniform`); under `mixture + replace` it is MDiff4STR's (arXiv 2512.01422).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiff.pytree import pytree
from jaxdiff.train.data import Batch
from jaxdiff.train.noises import View
from jaxdiff.train.objectives.base import Network, ObjectiveBase, Rows, by_chunks, cross_entropy, row_mean


@pytree
class Denoise(ObjectiveBase):
    """The mean cross entropy of a view's tokens to learn, in nats."""

    noise: ClassVar[str] = "semi_ar:share=0.5"

    def loss(self, network: Network, batch: Batch, views: Sequence[View], teacher: Network | None) -> Float[Array, ""]:
        del teacher
        rows = Rows.of(batch, views)
        features = network.features(rows.tokens, rows.prompt_lengths, rows.revealed)
        (nats,) = by_chunks(
            lambda features, target: (cross_entropy(network.logits(features), target),),
            *(rows.learn, features, rows.targets),
        )
        return jnp.sum(row_mean(nats, rows.learn)) / batch.tokens.shape[0]
