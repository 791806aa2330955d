"""Autoregressive Qwen2, Qwen2.5 and Qwen3 that were trained on as masked diffusion models: A2D and Open-dCoder.

Facts: ZHZisZZ/dllm `dllm/pipelines/a2d/` (classes A2DQwen2LMHeadModel, A2DQwen3LMHeadModel) and its samplers;
pengzhangzhi/Open-dLLM `veomni/models/transformers/qwen2/` (Qwen's own class names). The causal mask is gone, nothing
else: Qwen2's queries, keys and values have biases, Qwen3's queries and keys are normalised head by head. A2D reads
token i at its own position, Open-dCoder, as Dream, at i - 1. No config.json names the mask: the tokenizer's files do.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from jaxtyping import Array, Float, Int

from jaxdiff.models.config import MOST, SLIDING_WINDOW, HfConfig
from jaxdiff.models.shifted import Shifted
from jaxdiff.models.stack import Transformer
from jaxdiff.types import InputError, Inputs, KVCache, Params, Span


@dataclasses.dataclass(frozen=True, kw_only=True)
class QwenDiffusionConfig(HfConfig):
    """Read from the published `config.json`; what it does not say follows from its `architectures`.

    Attributes:
        qkv_bias: the projections of queries, keys and values have biases.
        qk_norm: queries and keys are normalised head by head.
        right_shift_logits: token i is read at position i - 1 (the name that dllm's samplers give it).
        attention_block: positions of a block (`block_size`), for a model that was trained block-causally, as dllm's
            BD3LM; None: every position sees all.
    """

    qkv_bias: bool = False  # type: ignore[override]
    qk_norm: bool = False  # type: ignore[override]
    right_shift_logits: bool = False
    attention_block: int | None = None

    ranges: ClassVar[Mapping[str, tuple[float | int, float | int]]] = {**HfConfig.ranges, "attention_block": (1, MOST)}
    required: ClassVar[Mapping[str, Any]] = {**HfConfig.required, "attention_bias": False}
    renamed: ClassVar[Mapping[str, str]] = {**HfConfig.renamed, "block_size": "attention_block"}
    harmless: ClassVar[frozenset[str]] = SLIDING_WINDOW
    by_architecture: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "A2DQwen2LMHeadModel": {"qkv_bias": True, "qk_norm": False, "right_shift_logits": False},
        "A2DQwen3LMHeadModel": {"qkv_bias": False, "qk_norm": True, "right_shift_logits": False},
        "Qwen2ForCausalLM": {"qkv_bias": True, "qk_norm": False, "right_shift_logits": True},
        "Qwen3ForCausalLM": {"qkv_bias": False, "qk_norm": True, "right_shift_logits": True},
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.right_shift_logits and self.attention_block is not None:
            raise InputError(
                f"block_size: found {self.attention_block} with right_shift_logits, expected one of the two; no model "
                "is known that was trained so"
            )


@dataclasses.dataclass(frozen=True)
class QwenDiffusion(Shifted):
    """A2D conversions (Qwen3-0.6B-diffusion, Qwen2.5-Coder-0.5B-Instruct-diffusion), Open-dCoder-0.5B."""

    config: QwenDiffusionConfig

    @property
    def shifted(self) -> bool:  # type: ignore[override]
        return self.config.right_shift_logits

    @property
    def tempered(self) -> bool:  # type: ignore[override]
        """Open-dCoder's sampler is Dream's, A2D's is LLaDA's."""
        return self.config.right_shift_logits

    def apply(
        self,
        params: Params,
        inputs: Inputs,
        kv: KVCache | None = None,
        at: Int[Array, " B"] | Int[Array, "B T"] | None = None,
        read: Span | None = None,
    ) -> tuple[Float[Array, "B r D"], KVCache | None]:
        apply = Shifted.apply if self.shifted else Transformer.apply
        return apply(self, params, inputs, kv, at, read)
