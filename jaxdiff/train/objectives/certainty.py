"""Certainty forcing (dParallel, arXiv 2509.26488; czg1225/dParallel `LLaDA/llada_train.py`).

Cross entropy says little where a token is right already, however unsure the model is; the entropy of a sharpened
distribution does. So a model is taught to be as sure of many tokens at once as a decode that commits by entropy asks.

The published loss is a sum over the two views of a batch with means over all its positions, and trains with one row at
a time. Here each row has means of its own, whatever the batch, and a view without a right token adds no entropy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdiff.pytree import number, pytree
from jaxdiff.train.data import Batch
from jaxdiff.train.noises import View
from jaxdiff.train.objectives.base import Network, ObjectiveBase, Rows, by_chunks, cross_entropy, row_mean
from jaxdiff.types import Leaf


def entropy(logits: Float[Array, "C V"], temperature: Leaf) -> Float[Array, " C"]:
    """Of softmax(logits / temperature), in nats."""
    log_probs = jax.nn.log_softmax(logits / jnp.asarray(temperature), axis=1)
    return -jnp.sum(jnp.exp(log_probs) * log_probs, axis=1)


def certainty_terms(network: Network, rows: Rows, temperature: Leaf) -> tuple[Float[Array, " R"], Float[Array, " R"]]:
    """The mean cross entropy of each row's tokens to learn, and the mean entropy of those among them that are right."""
    features = network.features(rows.tokens, rows.prompt_lengths, rows.revealed)

    def nats(features: Float[Array, "C D"], target: Int[Array, " C"]) -> tuple[Float[Array, " C"], ...]:
        logits = network.logits(features)
        right = jnp.argmax(logits, axis=1) == target
        return cross_entropy(logits, target), entropy(logits, temperature), right.astype(jnp.float32)

    wrongness, doubt, right = by_chunks(nats, rows.learn, features, rows.targets)
    is_right: Bool[Array, "R T"] = right > 0
    return row_mean(wrongness, rows.learn), row_mean(doubt, is_right)


@pytree
class Certainty(ObjectiveBase):
    """Cross entropy plus `beta` times the entropy, at a temperature, of the tokens that are right by argmax.

    Attributes:
        beta: 2 for LLaDA, 1 for Dream; 0 is the control, cross entropy alone.
        temperature: below 1 it weighs what is nearly sure.
    """

    beta: Leaf = number(default=2.0, low=0.0, high=1e3)
    temperature: Leaf = number(default=0.5, low=1e-3, high=1e3)

    noise: ClassVar[str] = "complement"

    def loss(self, network: Network, batch: Batch, views: Sequence[View], teacher: Network | None) -> Float[Array, ""]:
        del teacher
        wrongness, doubt = certainty_terms(network, Rows.of(batch, views), self.temperature)
        return jnp.sum(wrongness + jnp.asarray(self.beta) * doubt) / batch.tokens.shape[0]
