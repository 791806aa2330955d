"""The training objective of a masked diffusion model: what is masked, and how the loss is weighted.

Paper: LLaDA (arXiv 2502.09992), supervised fine-tuning. t ~ U(0, 1), a share t of the answer is masked, and the loss is
the cross entropy of the masked tokens / t, divided by the answer's length. The end-of-text padding is part of the
answer. Prompts are never masked.

The share is of tokens, not of probability: k = ceil(t n) of the answer's n tokens are masked, as in the paper's
likelihood estimate (its equation 6). Every set of masks has the expected weight that independent draws give it, while
no row is left without a mask and no weight exceeds n: on answers of a few tokens the gradient varies far less.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key

from jaxdiff.protocols import Model
from jaxdiff.types import Inputs, Params

AHEAD = 8  # how far a left-to-right decode looks: the tokens beyond wait for those before them


def corrupt(
    key: Key[Array, ""],
    tokens: Int[Array, "B T"],
    answers: Bool[Array, "B T"],
    prompt_lengths: Int[Array, " B"],
    answer_lengths: Int[Array, " B"],
    *,
    mask_id: int,
    semi_ar: float,
    in_order: float,
    block_length: int,
) -> tuple[Int[Array, "B T"], Float[Array, "B T"]]:
    """Noisy tokens and the weight of each position's cross entropy (0 where it is not masked).

    A share `semi_ar` of the rows is noised as semi-autoregressive decoding sees them (dParallel, arXiv 2509.26488):
    one block of the answer is active, what lies before it is clean, what lies after it is all masked and carries no
    loss; inside it the objective is the same, with the block's length in place of the answer's. The block is drawn
    evenly from those that hold the answer and its first end-of-text (`answer_lengths` counts both).

    A share `in_order` of those is masked from the right: the last k tokens of the block, as when it is decoded left
    to right, as worked answers mostly are. The first AHEAD of them carry the loss.

    `answers` says what may be masked. A packed row (`answer_lengths` 0) has no blocks: that share of them is cut at one
    of its answers' tokens, which is masked together with all that follows it.

    t is stratified over the batch: the same expectation as independent draws, with less variance.
    """
    rows, length = tokens.shape
    level_key, mask_key, block_key, kind_key, order_key = jax.random.split(key, 5)
    column = jnp.arange(length)[None]
    as_decoded = jax.random.uniform(kind_key, (rows, 1)) < semi_ar
    packed = (answer_lengths == 0)[:, None]
    ordered = as_decoded & ~packed & (jax.random.uniform(order_key, (rows, 1)) < in_order)
    priority = jnp.where(answers, jax.random.uniform(mask_key, (rows, length)), 2.0)  # lowest is masked first

    blocks = (answer_lengths + block_length - 1) // block_length
    chosen = jnp.floor(jax.random.uniform(block_key, (rows,)) * blocks).astype(jnp.int32)
    first = (prompt_lengths + chosen * block_length)[:, None]
    cut = jnp.argmin(priority, axis=1, keepdims=True)
    last = jnp.where(packed, cut, first + block_length - 1)
    active = answers & (~as_decoded | ((column <= last) & (packed | (column >= first))))
    later = as_decoded & (column > last)

    level = (jax.random.uniform(level_key) + jnp.arange(rows) / rows) % 1.0
    count = jnp.clip(jnp.ceil(level * jnp.sum(active, axis=1)), 1).astype(jnp.int32)[:, None]
    priority = jnp.where(ordered, 1.0 - column / length, priority)
    rank = jnp.argsort(jnp.argsort(jnp.where(active, priority, 2.0), axis=1), axis=1)
    drawn: Bool[Array, "B T"] = active & (rank < count)
    looked_at = jnp.where(ordered, jnp.minimum(count, AHEAD), count)
    weight = (drawn & (rank >= count - looked_at)) / looked_at
    return jnp.where(drawn | later, mask_id, tokens), weight


def loss(
    model: Model,
    params: Params,
    noisy: Int[Array, "B T"],
    tokens: Int[Array, "B T"],
    weight: Float[Array, "B T"],
    prompt_lengths: Int[Array, " B"] | None = None,
) -> Float[Array, ""]:
    """Weighted cross entropy, nats per answer token, the mean over rows; `prompt_lengths` for a `prefix_lm`."""
    features, _ = model.apply(params, Inputs.whole(noisy, prompt_length=prompt_lengths))
    width = features.shape[-1]
    logits = features.reshape(-1, width) @ model.head(params).astype(features.dtype)
    entropy = optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), tokens.reshape(-1))
    return jnp.sum(entropy * weight.reshape(-1)) / tokens.shape[0]
