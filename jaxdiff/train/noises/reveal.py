"""Masks, and in which steps the tokens beside them were revealed: what a model learns from that encodes them once."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxdiff.protocols import Model, is_encoding
from jaxdiff.pytree import InputError, number, pytree
from jaxdiff.train.data import Batch
from jaxdiff.train.network import Network
from jaxdiff.train.noises.base import NoiseBase, View
from jaxdiff.train.noises.semi_ar import Uniform
from jaxdiff.types import Count, Leaf

MOST_STEPS = 64


@pytree
class Reveal(NoiseBase):
    """The masks of `uniform`; what is visible of the answer was revealed in one step after the prompt, or in several.

    ENAT's simulated previous step (arXiv 2411.06959): with probability `reuse` a share ~ U(0, 1) of the visible tokens
    is taken for revealed in a later step than the rest, which then does not see them. There the features of the step
    before are computed apart, by an average of the weights and without a gradient; here in the same pass.

    Attributes:
        reuse: of the rows with previous steps; 0.5 as published.
        steps: at most so many previous steps, their number drawn evenly from 1 on; 1 as published. More is closer to a
            decode of many steps.
    """

    reuse: Leaf = number(default=0.5, low=0.0, high=1.0)
    steps: Count = number(default=1, low=1, high=MOST_STEPS, whole=True)

    reveals: ClassVar[bool] = True

    def check_model(self, model: Model) -> None:
        if not is_encoding(model):
            raise InputError(
                f"noise reveal: found a {type(model).__name__}, which sees its whole canvas, expected a model that "
                "encodes visible tokens once; name its family in the recipe (model.family: enat), or take noise uniform"
            )

    def views(self, key: Key[Array, ""], batch: Batch, network: Network, done: Float[Array, ""]) -> tuple[View, ...]:
        mask_key, reuse_key, count_key, cut_key, token_key = jax.random.split(key, 5)
        (view,) = Uniform().views(mask_key, batch, network, done)
        rows = view.tokens.shape[0]
        again = jax.random.uniform(reuse_key, (rows, 1)) < jnp.asarray(self.reuse)
        count = 1.0 + jnp.floor(jax.random.uniform(count_key, (rows, 1)) * jnp.asarray(self.steps))
        cuts = jax.random.uniform(cut_key, (rows, MOST_STEPS))
        is_cut = again & (jnp.arange(MOST_STEPS)[None] < count)
        place = jax.random.uniform(token_key, view.tokens.shape)
        later = jnp.sum(is_cut[:, None] & (cuts[:, None] < place[..., None]), axis=-1, dtype=jnp.int32)
        revealed = jnp.where(batch.answers, 1 + later, 0)
        masked = view.tokens == network.model.config.mask_token_id
        return (dataclasses.replace(view, revealed=jnp.where(masked, -1, revealed)),)
