"""Qwen3: Llama's stack, autoregressive, with queries and keys normalised head by head.

Facts: transformers `modeling_qwen3.py`. The head size does not follow from the width; small sizes tie the head. A
folder of this architecture that names a mask is a diffusion model (`qwen_diffusion`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from jaxdiff.models.causal import Causal, CausalConfig
from jaxdiff.models.config import SLIDING_WINDOW, HfConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Qwen3Config(CausalConfig):
    """Read from the published `config.json` (architectures Qwen3ForCausalLM, without a mask)."""

    head_dim: int = 128

    required: ClassVar[Mapping[str, Any]] = {**HfConfig.required, "attention_bias": False}
    harmless: ClassVar[frozenset[str]] = SLIDING_WINDOW
    qk_norm: ClassVar[bool] = True


@dataclasses.dataclass(frozen=True)
class Qwen3(Causal):
    """Qwen3, dense sizes."""

    config: Qwen3Config
