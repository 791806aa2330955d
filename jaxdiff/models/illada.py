"""iLLaDA-8B: LLaDA's bidirectional decoding over a Llama stack with fewer key/value heads and a tied head.

Facts: GSAI-ML/iLLaDA-8B `modeling_illada.py` and its model card. Unlike LLaDA's, its files speak Llama's names, and cos
and sin of the rotary positions are cast to the model's dtype. Its sampler is LLaDA's.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar

from jaxdiff.models.config import HfConfig
from jaxdiff.models.layers import Attention, SwiGLU
from jaxdiff.models.stack import Group, Transformer


@dataclasses.dataclass(frozen=True, kw_only=True)
class IlladaConfig(HfConfig):
    """Read from the published `config.json` (architectures ILLaDAForCausalLM)."""

    required: ClassVar[Mapping[str, Any]] = {
        **HfConfig.required,
        "attention_bias": False,
        "mlp_bias": False,
        "layer_norm_eps": None,  # a number asks for layer norms in place of RMS norms
    }
    published: ClassVar[tuple[int, Mapping[str, int]]] = (155136, {"mask_token_id": 5, "eos_token_id": 2})


@dataclasses.dataclass(frozen=True)
class Illada(Transformer):
    """iLLaDA-8B, Base and Instruct."""

    config: IlladaConfig

    def groups(self) -> tuple[Group, ...]:
        c = self.config
        scale = 1.0 / (2 * c.n_layers)
        attention = functools.partial(Attention, c.n_heads, c.n_kv_heads, c.head_dim, scale=scale)
        return (Group("layers", c.n_layers, attention, functools.partial(SwiGLU, c.mlp_hidden_size, scale=scale)),)
