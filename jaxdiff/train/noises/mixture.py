"""The noises of MDiff4STR: six maskings of a text, and random tokens in place of its own."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jaxdiff.pytree import choice, pytree
from jaxdiff.train.data import Batch
from jaxdiff.train.network import Network
from jaxdiff.train.noises.base import NoiseBase, View, masked, ranks, text_of

KINDS = ("full", "left_to_right", "right_to_left", "blocks", "cloze", "random")


@pytree
class Mixture(NoiseBase):
    """MDiff4STR's six maskings of a text and its first end-of-text, each row with one of them (arXiv 2512.01422).

    full: all. left_to_right: all but a prefix. right_to_left: all but a suffix. blocks: the text is cut into 2 to 6
    blocks, and all but the first few are masked. cloze: one token. random: a share t ~ U(0, 1). What follows the first
    end-of-text is masked and not learned. Source: Topdu/OpenOCR `mdiff_label_encode.py`; the weight of a row's tokens
    is 1 / masks here, where the published length counts the end-of-text twice.

    Attributes:
        of: the masking of every row, or `all`: one of the six, drawn evenly for each.
    """

    of: str = choice(("all", *KINDS), default="all")

    def views(self, key: Key[Array, ""], batch: Batch, network: Network, done: Float[Array, ""]) -> tuple[View, ...]:
        del done
        kind_key, cut_key, size_key, order_key = jax.random.split(key, 4)
        text, behind = text_of(batch)
        rows, n = text.shape[0], jnp.sum(text, axis=1, keepdims=True)
        place = jnp.cumsum(text, axis=1) - 1  # of a token in its text

        def drawn(key: Key[Array, ""], least: Array, most: Array) -> Int[Array, "B 1"]:
            """A whole number for each row, at most `most`, from `least` on."""
            draw = jax.random.uniform(key, (rows, 1)) * (most - least + 1)
            return jnp.minimum(least + draw.astype(jnp.int32), jnp.maximum(most, least))

        cut = drawn(cut_key, jnp.ones_like(n), n - 1)
        size = jnp.maximum(n // drawn(size_key, jnp.full_like(n, 2), jnp.full_like(n, 6)), 1)
        kept = size * drawn(cut_key, jnp.ones_like(n), (n + size - 1) // size - 1)
        order = ranks(jax.random.uniform(order_key, text.shape), text)
        some = jnp.clip(jnp.ceil(jax.random.uniform(cut_key, (rows, 1)) * n), 1)
        masks = jnp.stack([jnp.ones_like(text), place >= cut, place < cut, place >= kept, order < 1, order < some])
        alone = n < 2  # no cut to make
        if self.of == "all":
            kind = jax.random.randint(kind_key, (rows,), 0, len(KINDS))
        else:
            kind = jnp.full((rows,), KINDS.index(self.of))
        learn = text & (masks[kind, jnp.arange(rows)] | alone)
        return (View(masked(batch, learn | behind, network), learn),)


@pytree
class Replace(NoiseBase):
    """No masks: a share t ~ U(0, 1) of a text's tokens gives way to random ones, and every token is to be learned.

    What follows the first end-of-text is masked and not learned. Source: MDiff4STR (arXiv 2512.01422), Topdu/OpenOCR
    `mdiff_label_encode.py`, where [MASK] may be the random token; not here.
    """

    def views(self, key: Key[Array, ""], batch: Batch, network: Network, done: Float[Array, ""]) -> tuple[View, ...]:
        del done
        share_key, order_key, token_key = jax.random.split(key, 3)
        text, behind = text_of(batch)
        n = jnp.sum(text, axis=1, keepdims=True)
        count = jnp.ceil(jax.random.uniform(share_key, n.shape) * n)
        gone = text & (ranks(jax.random.uniform(order_key, text.shape), text) < count)
        config = network.model.config
        other = jax.random.randint(token_key, text.shape, 0, config.vocab_size - 1)
        other = other + (other >= config.mask_token_id)
        return (View(jnp.where(gone, other, masked(batch, behind, network)).astype(jnp.int32), text),)
