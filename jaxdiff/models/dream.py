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
from jaxdiff.models.dense import DenseTransformer
from jaxdiff.types import Memory, Params, Span, Window
from jaxdiff.windows import take


@dataclasses.dataclass(frozen=True, kw_only=True)
class DreamConfig(HfConfig):
    """Read from the published `config.json` (architectures DreamModel)."""

    rope_theta: float = 1000000.0

    required: ClassVar[Mapping[str, Any]] = {**HfConfig.required, "use_mrope": False}
    harmless: ClassVar[frozenset[str]] = SLIDING_WINDOW
    published: ClassVar[tuple[int, Mapping[str, int]]] = (
        152064,
        {"mask_token_id": 151666, "eos_token_id": 151643, "eot_token_id": 151645},
    )

    @property
    def qkv_bias(self) -> bool:
        return True


@dataclasses.dataclass(frozen=True)
class Dream(DenseTransformer):
    """Dream-7B, Dream-Coder."""

    config: DreamConfig

    shifted = tempered = True

    def features(
        self,
        params: Params,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"],
        valid: Bool[Array, "B T"],
        prompt: Int[Array, " B"] | None = None,
        read: Span | None = None,
    ) -> Float[Array, "B r D"]:
        """As every family's: row i predicts token i. The shift is undone here, and never reads the padding."""
        if read is None:
            return _unshifted(super().features(params, tokens, positions, valid, prompt), positions)
        wider = _with_the_one_before(read, tokens.shape[1])
        own = super().features(params, tokens, positions, valid, prompt, wider)
        return take(_unshifted(own, take(positions, wider.start, wider.count)), read.start - wider.start, read.count)

    def recall(
        self,
        params: Params,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B L"],
        valid: Bool[Array, "B L"],
        window: Window,
        memory: Memory,
        prompt: Int[Array, " B"] | None = None,
        read: Span | None = None,
    ) -> tuple[Float[Array, "B r D"], Memory]:
        """As every family's; a window's first row predicts nothing, unless it is the first token."""
        length = tokens.shape[1]
        wider = Span(jnp.zeros_like(window.start), length) if read is None else _with_the_one_before(read, length)
        part = None if read is None else wider
        own, kept = super().recall(params, tokens, positions, valid, window, memory, prompt, part)
        own = _unshifted(own, take(positions, window.start + wider.start, wider.count))
        return (own if read is None else take(own, read.start - wider.start, read.count)), kept


def _with_the_one_before(read: Span, length: int) -> Span:
    """What is to be computed: a token is read from the one before."""
    count = min(read.count + 1, length)
    return Span(jnp.clip(read.start - 1, 0, length - count), count)


def _unshifted(own: Float[Array, "B T D"], positions: Int[Array, "B T"]) -> Float[Array, "B T D"]:
    """A row's first token, and what is left of it, keep their own: position 0 has nothing before it."""
    before = jnp.concatenate([own[:, :1], own[:, :-1]], axis=1)
    return jnp.where((positions == 0)[..., None], own, before)
