"""Tokens that the model itself would wrongly write."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxdiff.pytree import number, pytree
from jaxdiff.train.data import Batch
from jaxdiff.train.network import Network
from jaxdiff.train.noises.base import MOST, NoiseBase, View, between, block_start, is_packed, masked, ranks, text_of
from jaxdiff.types import Count, Leaf


@pytree
class Mistakes(NoiseBase):
    """No masks in what is shown: a share of a text's tokens gives way to what the model itself might write there and is
    wrong, and every token that is shown is to be learned. So a model learns to doubt what it sees.

    A token is drawn from what the model, as it is trained, says of the text with the token masked, and with others, an
    even share between these alone and the whole text; the right token is left out. ELECTRA's generator (arXiv
    2003.10555), but that it is the model itself, and its mistakes are mended where ELECTRA finds them; with random
    tokens in their place it is `replace`. What follows what is shown is masked and not learned.

    Attributes:
        low, high: the share of tokens that are replaced is drawn evenly between the two for each row.
        share: of the rows; in these the text is shown through a block alone, drawn evenly from those that hold it, as
            semi-autoregressive decoding leaves that block, and the end-of-text padding in it is learned too. In the
            other rows, and in packed ones, the text is shown through its first end-of-text.
        block: in tokens.
    """

    low: Leaf = number(default=0.0, low=0.0, high=1.0)
    high: Leaf = number(default=0.2, low=0.0, high=1.0)
    share: Leaf = number(default=0.5, low=0.0, high=1.0)
    block: Count = number(default=32, low=1, high=MOST, whole=True)

    def views(self, key: Key[Array, ""], batch: Batch, network: Network, done: Float[Array, ""]) -> tuple[View, ...]:
        del done
        share_key, order_key, token_key, block_key, kind_key, mask_key = jax.random.split(key, 6)
        text, _ = text_of(batch)
        block = jnp.asarray(self.block)
        last = block_start(block_key, batch, block) + block - 1
        cut = ~is_packed(batch) & (jax.random.uniform(kind_key, last.shape) < jnp.asarray(self.share))
        shown = jnp.where(cut, batch.answers & (jnp.arange(text.shape[1])[None] <= last), text)
        among, later = text & shown, batch.answers & ~shown
        n = jnp.sum(among, axis=1, keepdims=True)
        count = jnp.ceil(between(share_key, self.low, self.high, len(n)) * n)
        asked = jnp.maximum(jnp.ceil(jax.random.uniform(mask_key, n.shape) * n), count)
        rank = ranks(jax.random.uniform(order_key, text.shape), among)
        canvas = masked(batch, (among & (rank < asked)) | later, network)
        gone = among & (rank < count)
        wrong = network.mistaken(token_key, canvas, batch.prompt_lengths, gone, batch.tokens)
        return (View(jnp.where(gone, wrong, masked(batch, later, network)), shown),)
