"""LLaDA-MoE-7B-A1B: LLaDA's bidirectional decoding over an OLMoE-like mixture in every layer.

Facts: inclusionAI/LLaDA-MoE-7B-A1B `modeling_lladamoe.py` (by way of dInfer and llama.cpp). Queries and keys are
normalised head by head; the router takes a float32 softmax over all experts and keeps the weights of the top k as they
are. Its `model_type` is dense LLaDA's: `architectures` tells them apart.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiff.models.config import Config, HfConfig
from jaxdiff.models.layers import Attention
from jaxdiff.models.moe import Mixture, Routes
from jaxdiff.models.stack import Group, Transformer
from jaxdiff.types import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class LladaMoeConfig(HfConfig):
    """Read from the published `config.json` (architectures LLaDAMoEModelLM).

    Attributes:
        mlp_hidden_size: of one expert (`expert_intermediate_size`).
        expert_bias: whether the router adds a learned bias for the choice (`moe_router_enable_expert_bias`).
    """

    num_experts: int
    num_experts_per_tok: int
    expert_bias: bool = False
    rope_theta: float = 50000.0
    rms_norm_eps: float = 1e-5

    required: ClassVar[Mapping[str, Any]] = {
        **HfConfig.required,
        "attention_bias": False,
        "qk_layernorm": True,
        "norm_topk_prob": False,
        "routed_scaling_factor": 1.0,
        "partial_rotary_factor": 1.0,
    }
    renamed: ClassVar[Mapping[str, str]] = {
        **{k: v for k, v in HfConfig.renamed.items() if v != "mlp_hidden_size"},
        "expert_intermediate_size": "mlp_hidden_size",
        "moe_router_enable_expert_bias": "expert_bias",
    }
    published: ClassVar[tuple[int, Mapping[str, int]]] = (157184, {"mask_token_id": 156895, "eos_token_id": 156892})

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Config:
        """As `Config.from_dict`. Raises InputError also for layers without experts, and for shared ones."""
        layers = raw.get("moe_layer_freq")
        if isinstance(layers, list) and not all(layers):
            raise InputError(f"config.json moe_layer_freq: found {layers}, expected experts in every layer")
        if raw.get("shared_expert_intermediate_size"):
            found = raw["shared_expert_intermediate_size"]
            raise InputError(f"config.json shared_expert_intermediate_size: found {found}, expected none")
        return super().from_dict(raw)


@dataclasses.dataclass(frozen=True)
class LladaMoe(Transformer):
    """LLaDA-MoE-7B-A1B, Base and Instruct."""

    config: LladaMoeConfig

    def groups(self) -> tuple[Group, ...]:
        c = self.config
        scale = 1.0 / (2 * c.n_layers)
        heads = (c.n_heads, c.n_kv_heads, c.head_dim)
        attention = functools.partial(Attention, *heads, norm_eps=c.rms_norm_eps, scale=scale)
        choose = functools.partial(most_likely, k=c.num_experts_per_tok)
        mixture = (c.num_experts, c.mlp_hidden_size, choose)
        mlp = functools.partial(Mixture, *mixture, bias=c.expert_bias, scale=scale)
        return (Group("layers", c.n_layers, attention, mlp),)


def most_likely(logits: Float[Array, "n X"], bias: Float[Array, " X"] | None, *, k: int) -> Routes:
    """The k experts of highest softmax (plus bias, for the choice alone), with their softmax as it is."""
    likely = jax.nn.softmax(logits, axis=-1)
    _, chosen = jax.lax.top_k(likely if bias is None else likely + bias[None], k)
    return jnp.take_along_axis(likely, chosen, axis=-1), chosen
