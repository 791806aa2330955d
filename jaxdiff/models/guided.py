"""Classifier-free guidance as a model around a model (LLaDA `generate.py`, `cfg_scale`)."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jaxdiff import kvcache
from jaxdiff.protocols import Model
from jaxdiff.types import Inputs, KVCache, Params, Span


@dataclasses.dataclass(frozen=True)
class Guided:
    """un + (scale + 1) (cond - un), where the unconditional copy has all that was given masked.

    Both copies run in one pass of 2B rows, conditional ones first, each with keys and values of its own. The head is
    linear, so guiding the features guides the logits, and no second [B, W, V] exists.
    """

    model: Model

    copies = 2

    @property
    def config(self) -> Any:
        return self.model.config

    @property
    def attention_block(self) -> int | None:
        return self.model.attention_block

    @property
    def shifted(self) -> bool:
        return self.model.shifted

    @property
    def tempered(self) -> bool:
        return self.model.tempered

    def init(self, key: Key[Array, ""]) -> Params:
        return self.model.init(key)

    def embed(self, params: Params, tokens: Int[Array, "B C"]) -> Float[Array, "B C D"]:
        return self.model.embed(params, tokens)

    def head(self, params: Params) -> Float[Any, "D V"]:
        return self.model.head(params)

    def empty_kv(self, rows: int, columns: int) -> KVCache:
        return self.model.empty_kv(self.copies * rows, columns)

    def apply(
        self,
        params: Params,
        inputs: Inputs,
        kv: KVCache | None = None,
        at: Int[Array, " B"] | Int[Array, "B T"] | None = None,
        read: Span | None = None,
    ) -> tuple[Float[Array, "B r D"], KVCache | None]:
        """As `jaxdiff.protocols.Model.apply`; reads `inputs.given` and `inputs.scale`; `inputs.rows` are those of one
        copy.
        """
        assert inputs.given is not None and inputs.scale is not None  # noqa: PT018
        blind = jnp.where(inputs.given, self.config.mask_token_id, inputs.tokens)
        blind = dataclasses.replace(inputs, tokens=blind)
        if kv is not None and inputs.rows is not None:
            blind = dataclasses.replace(blind, rows=inputs.rows + kvcache.rows_of(kv) // self.copies)
        both = jax.tree.map(lambda *pair: jnp.concatenate(pair), inputs, blind)
        twice = jax.tree.map(lambda x: jnp.concatenate([x, x]), (at, read))
        features, kv = self.model.apply(params, both, kv, *twice)
        seeing, unseeing = (half.astype(jnp.float32) for half in jnp.split(features, 2))
        scale = inputs.scale[:, None, None]
        return (unseeing + (scale + 1.0) * (seeing - unseeing)).astype(features.dtype), kv
