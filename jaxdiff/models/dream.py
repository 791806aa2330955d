"""Dream-7B and Dream-Coder: Qwen2.5's stack without a causal mask; logits are shifted by one.

Facts: HKUNLP/Dream `modeling_dream.py` and `generation_utils.py`. Queries, keys and values have biases, keys and values
fewer heads; cos and sin of the rotary positions are cast to the model's dtype. The network reads token i at position
i - 1, and the first token at its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdiff.models.config import SLIDING_WINDOW, HfConfig
from jaxdiff.models.stack import Transformer
from jaxdiff.types import Inputs, KVCache, Params, Span
from jaxdiff.windows import take


@dataclasses.dataclass(frozen=True, kw_only=True)
class DreamConfig(HfConfig):
    """Read from the published `config.json` (architectures DreamModel)."""

    required: ClassVar[Mapping[str, Any]] = {**HfConfig.required, "use_mrope": False}
    harmless: ClassVar[frozenset[str]] = SLIDING_WINDOW
    published: ClassVar[tuple[int, Mapping[str, int]]] = (
        152064,
        {"mask_token_id": 151666, "eos_token_id": 151643, "eot_token_id": 151645},
    )
    qkv_bias: ClassVar[bool] = True
    model_type: ClassVar[str] = "Dream"


@dataclasses.dataclass(frozen=True)
class Dream(Transformer):
    """Dream-7B, Dream-Coder."""

    config: DreamConfig

    shifted = tempered = True

    def apply(
        self,
        params: Params,
        inputs: Inputs,
        kv: KVCache | None = None,
        at: Int[Array, " B"] | Int[Array, "B T"] | None = None,
        read: Span | None = None,
    ) -> tuple[Float[Array, "B r D"], KVCache | None]:
        """As every family's: row i predicts token i. The shift is undone here, and never reads the padding."""
        length = inputs.tokens.shape[1]
        if at is not None and at.ndim == 2:
            own, kv = super().apply(params, inputs, kv, at)
            before = jnp.argmax(at[:, :, None] - 1 == at[:, None, :], axis=2)
            own = jnp.where(_first(inputs.positions), own, jnp.take_along_axis(own, before[..., None], axis=1))
            return (own if read is None else take(own, read.start, read.count)), kv
        if read is None:
            own, kv = super().apply(params, inputs, kv, at)
            return _unshifted(own, inputs.positions), kv
        count = min(read.count + 1, length)
        wider = Span(jnp.clip(read.start - 1, 0, length - count), count)
        own, kv = super().apply(params, inputs, kv, at, wider)
        own = _unshifted(own, take(inputs.positions, wider.start, count))
        return take(own, read.start - wider.start, read.count), kv


def _unshifted(own: Float[Array, "B T D"], positions: Int[Array, "B T"]) -> Float[Array, "B T D"]:
    """Each token's features from the row before; a row's first token, and what is left of it, keep their own."""
    before = jnp.concatenate([own[:, :1], own[:, :-1]], axis=1)
    return jnp.where(_first(positions), own, before)


def _first(positions: Int[Array, "B T"]) -> Bool[Array, "B T 1"]:
    """Position 0 has nothing before it; padding is not read at all."""
    return (positions <= 0)[..., None]
