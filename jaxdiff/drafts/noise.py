"""What a token is drawn with: the noise that `jaxdiff.decode` has there, one token a forward."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdiff.decode.decoder import Sampling
from jaxdiff.decode.tiles import Draws
from jaxdiff.drafts.base import Text


def one_by_one(
    features: Float[Array, "B n D"], columns: Int[Array, "B n"], text: Text, sampling: Sampling
) -> tuple[Float[Array, "Bn 1 D"], Sampling, Draws]:
    """Features of these columns as rows of one position each, how they are drawn, and the noise: each in the step in
    which a decode of one token a forward comes to its column, whichever pass it is here.
    """

    def flat(x: Array) -> Array:
        return jnp.repeat(x, columns.shape[1], axis=0)

    own = jax.tree.map(lambda x: flat(x) if jnp.ndim(x) else x, sampling)
    step, positions = columns - text.first, columns - text.origin[:, None]
    draws = Draws(flat(text.keys), step.reshape(-1), jnp.int32(0), jnp.maximum(positions, 0).reshape(-1, 1))
    return features.reshape(-1, 1, features.shape[2]), own, draws
