"""iLLaDA-8B: LLaDA's bidirectional decoding over a Llama stack with fewer key/value heads and a tied head.

Facts: GSAI-ML/iLLaDA-8B `modeling_illada.py` and its model card. Unlike LLaDA's, its files speak Llama's names, and cos
and sin of the rotary positions are cast to the model's dtype. Its sampler is LLaDA's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from jaxdiff.models.config import HfConfig
from jaxdiff.models.stack import Transformer


@dataclasses.dataclass(frozen=True, kw_only=True)
class IlladaConfig(HfConfig):
    """Read from the published `config.json` (architectures ILLaDAForCausalLM)."""

    required: ClassVar[Mapping[str, Any]] = {
        **HfConfig.required,
        "attention_bias": False,
        "layer_norm_eps": None,  # a number asks for layer norms in place of RMS norms
    }
    published: ClassVar[tuple[int, Mapping[str, int]]] = (155136, {"mask_token_id": 5, "eos_token_id": 2})
    model_type: ClassVar[str] = "illada"


@dataclasses.dataclass(frozen=True)
class Illada(Transformer):
    """iLLaDA-8B, Base and Instruct."""

    config: IlladaConfig
