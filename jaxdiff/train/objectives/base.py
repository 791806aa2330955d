"""What the objectives share: the network as they ask it, views as rows of one pass, logits in chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdiff.protocols import Model, is_causal
from jaxdiff.pytree import InputError, pytree, static
from jaxdiff.train.data import Batch
from jaxdiff.train.noise import Noise, View
from jaxdiff.types import Inputs, Params
from jaxdiff.weights import full

CHUNK = 1024  # positions whose logits exist at a time


@pytree
class Network:
    """A model with its parameters."""

    params: Params
    model: Model = static()

    def features(self, tokens: Int[Array, "R T"], prompt_lengths: Int[Array, " R"]) -> Float[Array, "R T D"]:
        return self.model.apply(self.params, Inputs.whole(tokens, prompt_length=prompt_lengths))[0]

    def logits(self, features: Float[Array, "C D"]) -> Float[Array, "C V"]:
        """In float32, [MASK] among them as in the published losses."""
        return (features @ full(self.model.head(self.params), features.dtype)).astype(jnp.float32)


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

    def check_model(self, model: Model) -> None:
        if is_causal(model):
            raise InputError(
                f"model: found an autoregressive one ({type(model).__name__}) with an objective of diffusion models, "
                "expected next_token; give objective next_token, or name another family"
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

    @classmethod
    def of(cls, batch: Batch, views: Sequence[View]) -> Rows:
        def below(arrays: Iterable[Any]) -> Array:
            return jnp.concatenate([jnp.asarray(array) for array in arrays])

        return cls(
            tokens=below([view.tokens for view in views]),
            learn=below([view.learn for view in views]),
            targets=below([batch.tokens] * len(views)),
            prompt_lengths=below([batch.prompt_lengths] * len(views)),
        )


def by_chunks(
    function: Callable[..., tuple[Float[Array, " C"], ...]], learn: Bool[Array, "R T"], *arrays: Array
) -> tuple[Float[Array, "R T"], ...]:
    """`function` of the marked positions, CHUNK of them at a time; 0 elsewhere.

    What `function` builds, such as logits [C, V], exists for one chunk alone: the gradient computes it again. A chunk
    without a marked position costs nothing.

    Args:
        function: of arrays [C ...] in the given order, to arrays [C].
        arrays: [R T ...] each.
    """
    marked = learn.reshape(-1)
    count, size = marked.size, min(CHUNK, marked.size)
    flat = [array.reshape(count, *array.shape[2:]) for array in arrays]
    marked_first = jnp.argsort(~marked, stable=True)
    places = jnp.pad(marked_first, (0, -count % size)).reshape(-1, size)  # what is padded lies behind all, unread
    chunks = [array[places] for array in flat]
    shapes = jax.eval_shape(function, *(jax.ShapeDtypeStruct(chunk.shape[1:], chunk.dtype) for chunk in chunks))
    nothing = tuple(jnp.zeros(shape.shape, shape.dtype) for shape in shapes)

    @jax.checkpoint
    def one(number: Int[Array, ""], chunk: list[Array]) -> tuple[Array, ...]:
        return jax.lax.cond(number * size < jnp.sum(marked), lambda: function(*chunk), lambda: nothing)

    _, found = jax.lax.scan(lambda carry, chunk: (carry, one(*chunk)), None, (jnp.arange(len(places)), chunks))

    def back(values: Array) -> Array:
        spread = jnp.zeros((count,), values.dtype).at[marked_first].set(values.reshape(-1)[:count])
        return jnp.where(marked, spread, 0.0).reshape(learn.shape)

    return tuple(back(values) for values in found)


def cross_entropy(logits: Float[Array, "C V"], targets: Int[Array, " C"]) -> Float[Array, " C"]:
    at = jnp.take_along_axis(logits, targets[:, None], axis=1)[:, 0]
    return jax.nn.logsumexp(logits, axis=1) - at


def row_mean(values: Float[Array, "R T"], among: Bool[Array, "R T"]) -> Float[Array, " R"]:
    """The mean over the marked positions of each row; 0 where there is none."""
    return jnp.sum(jnp.where(among, values, 0.0), axis=1) / jnp.maximum(jnp.sum(among, axis=1), 1)
