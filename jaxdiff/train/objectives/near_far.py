"""Trajectory-aware distillation (TAD, arXiv 2605.09536; BHmingyang/TAD `LLaDA/train_llada.py`).

The student stands where the teacher stood before one of its forwards (noise `states`). Of its masks, those that the
teacher wrote within the next few forwards are near: cross entropy on the teacher's token. The others are far: the
student is held to the teacher's distribution there.

The teacher sees the student's canvas. The paper shows it the right answer besides, in a turn of the system's; the
published code looks for that answer under a name that its data does not have, so that the turn is empty. The published
means are over a batch's positions; here each row has its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiff.pytree import InputError, number, pytree
from jaxdiff.train.data import Batch
from jaxdiff.train.noises import TRAJECTORY, Noise, View
from jaxdiff.train.objectives.base import Network, ObjectiveBase, Rows, by_chunks, cross_entropy, row_mean
from jaxdiff.types import Count, Leaf


def divergence(teacher: Float[Array, "C V"], student: Float[Array, "C V"], temperature: Leaf) -> Float[Array, " C"]:
    """KL(teacher || student) of logits at a temperature, times its square, in nats."""
    tau = jnp.asarray(temperature)
    theirs, ours = (jax.nn.log_softmax(logits / tau, axis=1) for logits in (teacher, student))
    return tau**2 * jnp.sum(jnp.exp(theirs) * (theirs - ours), axis=1)


@pytree
class NearFar(ObjectiveBase):
    """Cross entropy on what the teacher wrote next, plus `far` times the divergence from it on the rest.

    Attributes:
        near: the teacher's forwards whose tokens are near; its decode is one token a forward as published.
        far: the weight of the divergence.
        temperature: of both distributions in it.
    """

    near: Count = number(default=8, low=1, high=2**20, whole=True)
    far: Leaf = number(default=1.0, low=0.0, high=1e3)
    temperature: Leaf = number(default=1.0, low=1e-3, high=1e3)

    noise: ClassVar[str] = "states"
    needs: ClassVar[frozenset[str]] = frozenset({TRAJECTORY})
    asks_teacher: ClassVar[bool] = True

    def check(self, noise: Noise) -> None:
        if not noise.follows:
            raise InputError("objective near_far: found a noise that follows no trajectory, expected states")

    def loss(self, network: Network, batch: Batch, views: Sequence[View], teacher: Network | None) -> Float[Array, ""]:
        assert batch.order is not None
        assert teacher is not None
        rows = Rows.of(batch, views)
        at = jnp.concatenate([view.at for view in views])  # type: ignore[misc]
        until = (at + jnp.asarray(self.near))[:, None]
        near = rows.learn & (jnp.concatenate([jnp.asarray(batch.order)] * len(views)) < until)
        far = rows.learn & ~near
        features = network.features(rows.tokens, rows.prompt_lengths, rows.revealed)
        theirs = jax.lax.stop_gradient(teacher.features(rows.tokens, rows.prompt_lengths, rows.revealed))
        (wrongness,) = by_chunks(
            lambda features, target: (cross_entropy(network.logits(features), target),),
            *(near, features, rows.targets),
        )
        (apart,) = by_chunks(
            lambda theirs, ours: (divergence(teacher.logits(theirs), network.logits(ours), self.temperature),),
            *(far, theirs, features),
        )
        return jnp.sum(row_mean(wrongness, near) + jnp.asarray(self.far) * row_mean(apart, far)) / batch.tokens.shape[0]
