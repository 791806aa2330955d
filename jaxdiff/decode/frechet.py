"""Frechet bounds: how far a conditional probability can lie from a marginal one.

With p the marginal of a token, and P that of all that was written before it (as a product of marginals), what it is
given that lies within (p - 1 + P) / P and p / P. ADJUST clips its drafter's probabilities to that (arXiv 2509.22738,
`jointsampler.py`).
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiff.pytree import pytree
from jaxdiff.types import NEVER


@pytree
class Bounds:
    """What a belief is to stay within, of softmax(logits / temperature), the temperature being 1 where it is 0.

    Attributes:
        marginal: features of the full pass, from which the marginals are.
        log_mass: log P of each row.
        total, marginal_total: logsumexp of what is bounded, and of the marginals, over the vocabulary.
    """

    marginal: Float[Array, "B C D"]
    log_mass: Float[Array, " B"]
    total: Float[Array, "B C"]
    marginal_total: Float[Array, "B C"]


def bounded(
    logits: Float[Array, "B C v"], marginal: Float[Array, "B C v"], within: Bounds, divisor: Float[Array, "B 1 1"]
) -> Float[Array, "B C v"]:
    """Logits whose softmax(logits / divisor) is that of `logits` clipped to the bounds, up to its sum."""
    log_p = marginal / divisor - within.marginal_total[..., None]
    log_mass = within.log_mass[:, None, None]
    # (1 - p) / P in logs: P may be too small for 1 / P to be a number, and p may be 1.
    log_ratio = jnp.log(-jnp.expm1(jnp.minimum(log_p, 0.0))) - log_mass
    low = jnp.log(-jnp.expm1(jnp.minimum(log_ratio, 0.0)))
    clipped = jnp.clip(logits / divisor - within.total[..., None], low, log_p - log_mass)
    return jnp.where(logits > NEVER, jnp.maximum(clipped * divisor, NEVER), NEVER)
