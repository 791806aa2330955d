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

from jaxdiff.models.config import Each, HfConfig
from jaxdiff.models.moe import Mixture, check_chosen, most_likely
from jaxdiff.models.stack import Group, Transformer


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
        "moe_layer_freq": Each(1),
        "moe_router_score_function": "softmax",
        "router_num_group": None,
        "router_topk_group": None,
        "shared_expert_intermediate_size": None,
        "clip_qkv": None,
    }
    # The width of layers without experts, of which there are none; a loss.
    harmless: ClassVar[frozenset[str]] = frozenset({"dense_intermediate_size", "router_aux_loss_coef"})
    renamed: ClassVar[Mapping[str, str]] = {
        **{k: v for k, v in HfConfig.renamed.items() if v != "mlp_hidden_size"},
        "expert_intermediate_size": "mlp_hidden_size",
        "moe_router_enable_expert_bias": "expert_bias",
    }
    published: ClassVar[tuple[int, Mapping[str, int]]] = (157184, {"mask_token_id": 156895, "eos_token_id": 156892})
    qk_norm: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_chosen(self.num_experts_per_tok, self.num_experts)


@dataclasses.dataclass(frozen=True)
class LladaMoe(Transformer):
    """LLaDA-MoE-7B-A1B, Base and Instruct."""

    config: LladaMoeConfig

    def groups(self) -> tuple[Group, ...]:
        c = self.config
        choose = functools.partial(most_likely, k=c.num_experts_per_tok)
        sizes = (c.num_experts, c.mlp_hidden_size)
        mlp = functools.partial(Mixture, *sizes, choose, bias=c.expert_bias, scale=c.output_scale)
        return (Group("layers", c.n_layers, mlp),)
