"""Qwen2 and Qwen2.5: Llama's stack, autoregressive, with biases on queries, keys and values.

Facts: transformers `modeling_qwen2.py`. Small sizes tie the head. A folder of this architecture that names a mask is a
diffusion model (`qwen_diffusion`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from jaxdiff.models.causal import Causal, CausalConfig
from jaxdiff.models.config import SLIDING_WINDOW, HfConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Qwen2Config(CausalConfig):
    """Read from the published `config.json` (architectures Qwen2ForCausalLM, without a mask)."""

    required: ClassVar[Mapping[str, Any]] = {**HfConfig.required, "use_mrope": False}
    harmless: ClassVar[frozenset[str]] = SLIDING_WINDOW
    qkv_bias: ClassVar[bool] = True


@dataclasses.dataclass(frozen=True)
class Qwen2(Causal):
    """Qwen2 and Qwen2.5, dense sizes, Coder and Math too."""

    config: Qwen2Config
