"""SDAR-30B-A3B: SDAR over Qwen3-MoE's stack, a routed mixture in every layer.

Facts: PKU-SEC-Lab/TEAM-MoE-dLLM `modeling_sdar_moe.py` (JetLM's file with additions). Attention, blocks and logits are
dense SDAR's; the router takes a float32 softmax over all experts and scales the weights of the top k to a sum of 1.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar

from jaxdiff.models.config import HfConfig
from jaxdiff.models.moe import Mixture, check_chosen, most_likely
from jaxdiff.models.sdar import SdarConfig
from jaxdiff.models.stack import Group, Transformer


@dataclasses.dataclass(frozen=True, kw_only=True)
class SdarMoeConfig(SdarConfig):
    """Read from the published `config.json` (architectures SDARMoeForCausalLM).

    Attributes:
        mlp_hidden_size: of one expert (`moe_intermediate_size`).
        norm_topk_prob: the weights of a token's experts are scaled to a sum of 1.
    """

    num_experts: int
    num_experts_per_tok: int
    norm_topk_prob: bool = False

    required: ClassVar[Mapping[str, Any]] = {**SdarConfig.required, "decoder_sparse_step": 1, "mlp_only_layers": []}
    renamed: ClassVar[Mapping[str, str]] = {
        **{k: v for k, v in HfConfig.renamed.items() if v != "mlp_hidden_size"},
        "moe_intermediate_size": "mlp_hidden_size",
        "block_size": "attention_block",
    }
    # The width of layers without experts, of which there are none; a loss.
    harmless: ClassVar[frozenset[str]] = SdarConfig.harmless | {"intermediate_size", "router_aux_loss_coef"}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_chosen(self.num_experts_per_tok, self.num_experts)


@dataclasses.dataclass(frozen=True)
class SdarMoe(Transformer):
    """SDAR-30B-A3B, Chat and Sci."""

    config: SdarMoeConfig

    tempered = True

    def groups(self) -> tuple[Group, ...]:
        c = self.config
        choose = functools.partial(most_likely, k=c.num_experts_per_tok, renormalised=c.norm_topk_prob)
        mlp = functools.partial(Mixture, c.num_experts, c.mlp_hidden_size, choose, scale=c.output_scale)
        return (Group("layers", c.n_layers, mlp),)
