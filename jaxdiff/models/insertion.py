"""The insertion family (ILM, arXiv 2505.05755): LLaDA's stack read as what is missing, and a head that says stop.

Every token owns the gap to its right: the logits of a token's row are of what is to be inserted behind it, and one
softmax goes over all gaps and tokens together. Facts: dhruvdcoder/ILM `diffusion/ilm_v2.py`. What differs: the norms
are RMS norms, with one behind the last layer; the published stop classifier has two classes and reads a [CLS] token,
this one has a single logit and reads the row's first token, which prompts have anyway.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxdiff.models.llada import LladaConfig
from jaxdiff.models.stack import Transformer
from jaxdiff.types import InputError, Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class InsertionConfig(LladaConfig):
    """As LLaDA's. `mask_token_id` is an id that is never inserted and that no prompt may hold."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prefix_lm:
            raise InputError(
                "prefix_lm: found true for an insertion model, expected false: the first token, which says whether the "
                "text is whole, must see all of it"
            )


@dataclasses.dataclass(frozen=True)
class Insertion(Transformer):
    """A `jaxdiff.protocols.Completes`; its params have a leaf `stop/weight` [D] more than LLaDA's."""

    config: InsertionConfig

    def init(self, key: Key[Array, ""]) -> Params:
        """As every family's; the stop head starts at even odds."""
        return super().init(key) | {"stop": {"weight": jnp.zeros((self.config.d_model,), jnp.float32)}}

    def whole(self, params: Params, features: Float[Array, "B D"]) -> Float[Array, " B"]:
        """As `jaxdiff.protocols.Completes.whole`."""
        weight = params["stop"]["weight"].astype(jnp.float32)
        return jnp.sum(features.astype(jnp.float32) * weight[None], axis=-1)
