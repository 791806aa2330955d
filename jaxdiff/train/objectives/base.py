"""What the objectives share: views as rows of one pass, losses of positions and their means."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdiff.protocols import Model, is_causal, is_insertion
from jaxdiff.pytree import InputError, pytree
from jaxdiff.train.data import Batch
from jaxdiff.train.network import Network as Network
from jaxdiff.train.network import by_chunks as by_chunks
from jaxdiff.train.noises import Noise, View


@runtime_checkable
class Objective(Protocol):
    """What is lost: a frozen pytree of numbers, a pure function of a network, a batch and its noisy views.

    Attributes:
        noise: the text of the noise that is published with it, which a recipe gets that names none.
        needs: TRAJECTORY, if it reads `Batch.order`.
        asks_teacher: whether it reads the teacher's distributions.
    """

    noise: ClassVar[str]

    @property
    def needs(self) -> frozenset[str]: ...

    @property
    def asks_teacher(self) -> bool: ...

    def check(self, noise: Noise) -> None:
        """Raises InputError for a noise whose views it cannot be computed from."""
        ...

    def check_model(self, model: Model) -> None:
        """Raises InputError for a model that it does not train."""
        ...

    def loss(self, network: Network, batch: Batch, views: Sequence[View], teacher: Network | None) -> Float[Array, ""]:
        """In nats: the sum over a row's views, the mean over rows. Each view's own mean is over the positions that it
        learns, row by row, so that long rows do not outweigh short ones; a view that learns nothing adds nothing.
        """
        ...


class ObjectiveBase:
    """An objective that needs neither a trajectory nor a teacher, takes any noise that hides what is to be learned, and
    trains models that see their whole canvas.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    asks_teacher: ClassVar[bool] = False

    def check(self, noise: Noise) -> None:
        if noise.causal:
            raise InputError(
                "noise meap: found it with an objective that learns what is masked, expected one that masks it; take "
                "objective next_token, or another noise"
            )
        if noise.drops:
            raise InputError(
                "noise drop: found it with an objective that learns what is masked, expected one that masks it; take "
                "objective insertion, or another noise"
            )

    def check_model(self, model: Model) -> None:
        if is_causal(model):
            raise InputError(
                f"model: found an autoregressive one ({type(model).__name__}) with an objective of diffusion models, "
                "expected next_token; give objective next_token, or name another family"
            )
        if is_insertion(model):
            raise InputError(
                f"model: found one that inserts ({type(model).__name__}) with an objective of masks, expected "
                "objective insertion; give that, or name another family"
            )
        if model.attention_block is not None:
            raise InputError(
                f"model: found one that attends in blocks of {model.attention_block}, expected one that sees its whole "
                "canvas, which the noises are made for; train another"
            )


@pytree
class Rows:
    """The views of a batch one below the other, R = views x B rows, with the clean tokens as targets."""

    tokens: Int[Array, "R T"]
    learn: Bool[Array, "R T"]
    targets: Int[Array, "R T"]
    prompt_lengths: Int[Array, " R"]
    revealed: Int[Array, "R T"] | None = None

    @classmethod
    def of(cls, batch: Batch, views: Sequence[View]) -> Rows:
        def below(arrays: Iterable[Any]) -> Array:
            return jnp.concatenate([jnp.asarray(array) for array in arrays])

        return cls(
            tokens=below([view.tokens for view in views]),
            learn=below([view.learn for view in views]),
            targets=below([batch.tokens] * len(views)),
            prompt_lengths=below([batch.prompt_lengths] * len(views)),
            revealed=None if views[0].revealed is None else below([view.revealed for view in views]),
        )


def cross_entropy(logits: Float[Array, "C V"], targets: Int[Array, " C"]) -> Float[Array, " C"]:
    at = jnp.take_along_axis(logits, targets[:, None], axis=1)[:, 0]
    return jax.nn.logsumexp(logits, axis=1) - at


def row_mean(values: Float[Array, "R T"], among: Bool[Array, "R T"]) -> Float[Array, " R"]:
    """The mean over the marked positions of each row; 0 where there is none."""
    return jnp.sum(jnp.where(among, values, 0.0), axis=1) / jnp.maximum(jnp.sum(among, axis=1), 1)
