"""What an insertion model learns from: texts from which tokens of the answer are missing."""

from __future__ import annotations

from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jaxdiff.protocols import Model, is_insertion
from jaxdiff.pytree import InputError, number, pytree
from jaxdiff.train.data import Batch
from jaxdiff.train.network import Network
from jaxdiff.train.noises.base import MOST, NoiseBase, View, is_packed, ranks
from jaxdiff.types import Count, Leaf


@pytree
class Drop(NoiseBase):
    """n of the answer's m tokens are missing, n ~ U{0 .. m} (ILM, arXiv 2505.05755).

    The views hold every token: what is marked as to be learned is what the model is not shown. The answer has no
    end-of-text: that nothing is missing is what the stop head says. n is stratified over the batch: the same
    expectation as independent draws, with less variance.

    Attributes:
        span: the share of the rows in which all that is missing lies in one stretch of w ~ U{1 .. m} tokens, n ~ U{0 ..
            w} of them, as in a text with one hole while it is filled; 0 is the paper's.
        longest: tokens of a stretch, at most.
    """

    span: Leaf = number(default=0.0, low=0.0, high=1.0)
    longest: Count = number(default=MOST, low=1, high=MOST, whole=True)

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
        level_key, which_key, span_key, size_key, start_key = jax.random.split(key, 5)
        column = jnp.arange(length)[None]
        end = (batch.prompt_lengths + batch.answer_lengths)[:, None] - 1  # of the first end-of-text
        answer = batch.answers & (is_packed(batch) | (column < end))
        total = jnp.sum(answer, axis=1, keepdims=True)
        size = 1 + _below(size_key, jnp.minimum(total, jnp.asarray(self.longest)))
        place = jnp.cumsum(answer, axis=1) - 1 - _below(start_key, total - size + 1)
        is_span = jax.random.uniform(span_key, (rows, 1)) < jnp.asarray(self.span)
        among = answer & (~is_span | ((place >= 0) & (place < size)))
        level = (jax.random.uniform(level_key) + jnp.arange(rows)[:, None] / rows) % 1.0
        count = jnp.floor(level * (jnp.sum(among, axis=1, keepdims=True) + 1)).astype(jnp.int32)
        missing = ranks(jax.random.uniform(which_key, (rows, length)), among) < count
        return (View(jnp.asarray(batch.tokens), among & missing),)


def _below(key: Key[Array, ""], most: Int[Array, "B 1"]) -> Int[Array, "B 1"]:
    """A whole number of each row's own, from 0 on, below `most`."""
    return jnp.floor(jax.random.uniform(key, most.shape) * most).astype(jnp.int32)
