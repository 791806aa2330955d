"""What an insertion model learns from: texts from which tokens of the answer are missing."""

from __future__ import annotations

from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxdiff.protocols import Model, is_insertion
from jaxdiff.pytree import InputError, number, pytree
from jaxdiff.train.data import Batch
from jaxdiff.train.network import Network
from jaxdiff.train.noises.base import NoiseBase, View, is_packed, ranks
from jaxdiff.types import Leaf


@pytree
class Drop(NoiseBase):
    """n of the answer's m tokens are missing, n ~ U{0 .. m} (ILM, arXiv 2505.05755).

    The views hold every token: what is marked as to be learned is what the model is not shown. The answer has no
    end-of-text: that nothing is missing is what the stop head says. n is stratified over the batch: the same
    expectation as independent draws, with less variance.

    Attributes:
        span: the share of the rows in which the n tokens stand next to each other, as where a text with one hole is
            filled; 0 is the paper's.
    """

    span: Leaf = number(default=0.0, low=0.0, high=1.0)

    drops: ClassVar[bool] = True

    def check_model(self, model: Model) -> None:
        if not is_insertion(model):
            raise InputError(
                f"noise drop: found a {type(model).__name__}, which fills masks, expected an insertion model; name its "
                "family in the recipe (model.family: insertion), or take another noise"
            )

    def views(self, key: Key[Array, ""], batch: Batch, network: Network, done: Float[Array, ""]) -> tuple[View, ...]:
        del network, done
        rows, length = batch.tokens.shape
        level_key, which_key, span_key, start_key = jax.random.split(key, 4)
        column = jnp.arange(length)[None]
        end = (batch.prompt_lengths + batch.answer_lengths)[:, None] - 1  # of the first end-of-text
        among = batch.answers & (is_packed(batch) | (column < end))
        total = jnp.sum(among, axis=1, keepdims=True)
        level = (jax.random.uniform(level_key) + jnp.arange(rows)[:, None] / rows) % 1.0
        count = jnp.floor(level * (total + 1)).astype(jnp.int32)
        anywhere = ranks(jax.random.uniform(which_key, (rows, length)), among)
        first = jnp.floor(jax.random.uniform(start_key, (rows, 1)) * (total - count + 1)).astype(jnp.int32)
        place = jnp.cumsum(among, axis=1) - 1
        together = (place - first) % jnp.maximum(length, 1)
        is_span = jax.random.uniform(span_key, (rows, 1)) < jnp.asarray(self.span)
        rank = jnp.where(is_span, together, anywhere)
        return (View(jnp.asarray(batch.tokens), among & (rank < count)),)
