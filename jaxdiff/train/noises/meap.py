"""The text as it stands, or with masks in what is read: for autoregressive models."""

from __future__ import annotations

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from jaxdiff.protocols import Model
from jaxdiff.pytree import InputError, number, pytree
from jaxdiff.train.data import Batch
from jaxdiff.train.network import Network
from jaxdiff.train.noises.base import NoiseBase, View, masked, ranks, text_of
from jaxdiff.types import Leaf


@pytree
class Meap(NoiseBase):
    """The text as it stands, for an autoregressive model; all of it is to be learned that an answer is, through its
    first end-of-text.

    With `masked` a share of what is read gives way to [MASK], prompts too: mask-enhanced autoregressive prediction
    (MEAP, arXiv 2502.07490). Of n tokens with something to learn behind them round(masked n) are masked. The published
    code draws the masks once for a batch; here each row has its own.

    Attributes:
        masked: 0, plain next-token prediction; 0.15 as published for pretraining. Above 0 the vocabulary has a [MASK].
    """

    masked: Leaf = number(default=0.0, low=0.0, high=1.0)

    causal: ClassVar[bool] = True

    def check_model(self, model: Model) -> None:
        if np.any(np.asarray(self.masked) > 0.0) and not model.config.has_mask:
            raise InputError(
                f"noise meap masked: found {self.masked} with a {type(model).__name__} without a [MASK] in its "
                "vocabulary, expected 0; leave masked out, or name the mask in config.json (mask_token_id)"
            )

    def views(self, key: Key[Array, ""], batch: Batch, network: Network, done: Float[Array, ""]) -> tuple[View, ...]:
        del done
        text, _ = text_of(batch)
        later = jnp.cumsum(text[:, ::-1], axis=1)[:, ::-1] - text  # how many learned tokens stand behind
        read = later > 0
        count = jnp.round(jnp.asarray(self.masked) * jnp.sum(read, axis=1, keepdims=True))
        masks = read & (ranks(jax.random.uniform(key, text.shape), read) < count)
        return (View(masked(batch, masks, network), text),)
