"""Embeddings that are learned, or drawn anew so that no token means more than that it is the same token elsewhere."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from jaxdiff.protocols import Model
from jaxdiff.types import InputError, Params

EMBEDDINGS = ("learned", "lexinvariant")
Vary = Callable[[Key[Array, ""], Params], Params]


def as_they_are(key: Key[Array, ""], params: Params) -> Params:
    """Learned ones."""
    del key
    return params


def varied_by(embedding: str, model: Model) -> Vary:
    """What a step of a run, and at its end the model that it makes, has in place of the parameters that are trained.

    `lexinvariant`: every token's embedding is a random Gaussian vector, but for [MASK] and the ends of a text
    (Lexinvariant language models, arXiv 2305.16349). The paper draws them for each sequence; here they are drawn for
    each step, and its rows share them: no two steps have them alike either. The model that is made has one more draw,
    in which a token that no text of the training held is like any other.

    Raises InputError for a model with a head of its own, which would know tokens by their ids.
    """
    if embedding == "learned":
        return as_they_are
    config = model.config
    if not config.tied:
        raise InputError(
            "embedding: found lexinvariant with a model that has a head of its own, expected the embedding as head; "
            "set model.weight_tying to true"
        )
    kept = jnp.asarray([config.mask_token_id, *config.eos_ids])

    def drawn(key: Key[Array, ""], params: Params) -> Params:
        learned = params["wte"]
        rows = jnp.isin(jnp.arange(learned.shape[0]), kept)
        random = jax.random.normal(key, learned.shape, learned.dtype) / learned.shape[1] ** 0.5
        return params | {"wte": jnp.where(rows[:, None], learned, random)}

    return drawn
