"""A model with its parameters, as noises and objectives ask it: logits of some positions, a chunk of them at a time."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, Shaped

from jaxdiff.protocols import Model
from jaxdiff.pytree import pytree, static
from jaxdiff.types import Inputs, Params
from jaxdiff.weights import full

CHUNK = 1024  # positions whose logits exist at a time


@pytree
class Network:
    """A model with its parameters."""

    params: Params
    model: Model = static()

    def features(
        self,
        tokens: Int[Array, "R T"],
        prompt_lengths: Int[Array, " R"],
        revealed: Int[Array, "R T"] | None = None,
    ) -> Float[Array, "R T D"]:
        inputs = Inputs.whole(tokens, prompt_length=prompt_lengths, revealed=revealed)
        return self.model.apply(self.params, inputs)[0]

    def logits(self, features: Float[Array, "C D"]) -> Float[Array, "C V"]:
        """In float32, [MASK] among them as in the published losses."""
        return (features @ full(self.model.head(self.params), features.dtype)).astype(jnp.float32)

    def mistaken(
        self,
        key: Key[Array, ""],
        tokens: Int[Array, "R T"],
        prompt_lengths: Int[Array, " R"],
        at: Bool[Array, "R T"],
        right: Int[Array, "R T"],
    ) -> Int[Array, "R T"]:
        """At the marked positions of a canvas a token that the model takes for likely and that is wrong: drawn from its
        distribution there without the right token and [MASK]. Elsewhere the right tokens.
        """
        features, mask_id = self.features(tokens, prompt_lengths), self.model.config.mask_token_id

        def drawn(features: Float[Array, "C D"], right: Int[Array, " C"], keys: Key[Array, " C"]) -> tuple[Array, ...]:
            logits = self.logits(features)
            token = jnp.arange(logits.shape[1])[None]
            wrong = jnp.where((token == right[:, None]) | (token == mask_id), -jnp.inf, logits)
            return (jax.vmap(jax.random.categorical)(keys, wrong).astype(jnp.int32),)

        (wrong,) = by_chunks(drawn, at, features, right, jax.random.split(key, at.shape))
        return jnp.where(at, wrong, right).astype(jnp.int32)


def by_chunks(
    function: Callable[..., tuple[Shaped[Array, " C"], ...]], learn: Bool[Array, "R T"], *arrays: Array
) -> tuple[Shaped[Array, "R T"], ...]:
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
        return jnp.where(marked, spread, jnp.zeros_like(spread)).reshape(learn.shape)

    return tuple(back(values) for values in found)
