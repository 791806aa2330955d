"""Llama: the stack that the other families vary; here as it is, autoregressive (Llama 2, SmolLM, SmolLM2).

Facts: transformers `modeling_llama.py`. Small sizes tie the head. Llama 3.1 and later scale their rotary frequencies
(`rope_type` llama3), which is refused.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from jaxdiff.models.causal import Causal, CausalConfig
from jaxdiff.models.config import HfConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class LlamaConfig(CausalConfig):
    """Read from the published `config.json` (architectures LlamaForCausalLM)."""

    required: ClassVar[Mapping[str, Any]] = {**HfConfig.required, "attention_bias": False, "rope_interleaved": False}
    # Of SmolLM2: who trained it, and how its weights are laid out for a browser.
    harmless: ClassVar[frozenset[str]] = frozenset({"is_llama_config", "transformers.js_config"})


@dataclasses.dataclass(frozen=True)
class Llama(Causal):
    """SmolLM2-135M, 360M and 1.7B; Llama 2; TinyLlama."""

    config: LlamaConfig
