"""LLaDA2.0 and LLaDA2.1 (without its editing): block-causal attention in blocks of 32 over a group-limited mixture.

Facts: inclusionAI/LLaDA2.0-mini `modeling_llada2_moe.py`, `configuration_llada2_moe.py`. The first layers are dense,
the others route to sigmoid-scored experts beside a shared one; queries and keys are normalised head by head; the first
half of each head is rotated. The published fused query_key_value is three leaves here.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiff.models.config import MOST, SLIDING_WINDOW, HfConfig
from jaxdiff.models.layers import SwiGLU
from jaxdiff.models.moe import Mixture, Routes
from jaxdiff.models.stack import Group, Transformer
from jaxdiff.types import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Llada2Config(HfConfig):
    """Read from the published `config.json` (architectures LLaDA2MoeModelLM).

    Attributes:
        mlp_hidden_size: of the dense layers; `moe_intermediate_size`: of one expert.
        n_group, topk_group: experts fall into groups, and those of the best groups alone may be chosen.
        attention_block: the published decode's block (`block_size`, which few files name).
    """

    num_experts: int
    num_experts_per_tok: int
    moe_intermediate_size: int
    num_shared_experts: int = 0
    n_group: int = 8
    topk_group: int = 4
    routed_scaling_factor: float = 2.5
    first_k_dense_replace: int = 0
    partial_rotary_factor: float = 0.5
    use_qkv_bias: bool = False
    rms_norm_eps: float = 1e-5
    max_sequence_length: int = 16384
    attention_block: int = 32

    ranges: ClassVar[Mapping[str, tuple[float | int, float | int]]] = {
        **HfConfig.ranges,
        "num_shared_experts": (0, MOST),
        "first_k_dense_replace": (0, MOST),
        "partial_rotary_factor": (1e-30, 1.0),
    }
    required: ClassVar[Mapping[str, Any]] = {
        **{k: v for k, v in HfConfig.required.items() if k != "partial_rotary_factor"},
        "use_qk_norm": True,
        "use_bias": False,
        "norm_head": False,
        "norm_topk_prob": True,
        "score_function": "sigmoid",
        "moe_router_enable_expert_bias": True,
        "router_dtype": "fp32",
        "use_rmsnorm": True,
        "norm_softmax": False,
        "using_split_qkv_in_self_attention": False,
    }
    of_others: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("expert_capacity", "delete_token_id", "split_token_id"),
        "LLaDA2.2, which routes whole blocks to experts and edits by DELETE and SPLIT: neither is here, and without "
        "its routing the numbers differ",
    )
    renamed: ClassVar[Mapping[str, str]] = {**HfConfig.renamed, "block_size": "attention_block"}
    repeated: ClassVar[Mapping[str, str]] = {"rotary_dim": "rotary_dim"}
    harmless: ClassVar[frozenset[str]] = SLIDING_WINDOW
    published: ClassVar[tuple[int, Mapping[str, int]]] = (157184, {"mask_token_id": 156895, "eos_token_id": 156892})
    qk_norm: ClassVar[bool] = True
    training: ClassVar[Mapping[str, Any]] = dict.fromkeys(
        ("attention_dropout", "embedding_dropout", "output_dropout"), 0.0
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_experts % self.n_group or self.num_experts // self.n_group < 2:
            raise InputError(
                f"n_group: found {self.n_group} for {self.num_experts} experts, expected 2 or more in each"
            )
        if self.topk_group > self.n_group:
            raise InputError(f"topk_group: found {self.topk_group}, expected at most n_group = {self.n_group}")
        among = self.topk_group * self.num_experts // self.n_group
        if self.num_experts_per_tok > among:
            raise InputError(
                f"num_experts_per_tok: found {self.num_experts_per_tok}, expected at most the {among} experts of "
                f"{self.topk_group} groups"
            )
        if self.first_k_dense_replace >= self.n_layers:
            raise InputError(
                f"first_k_dense_replace: found {self.first_k_dense_replace}, expected 0 to {self.n_layers - 1}"
            )

    @property
    def qkv_bias(self) -> bool:  # type: ignore[override]
        return self.use_qkv_bias

    @property
    def rotary_dim(self) -> int:
        return int(self.head_dim * self.partial_rotary_factor)


@dataclasses.dataclass(frozen=True)
class Llada2(Transformer):
    """LLaDA2.0-mini, LLaDA2.1-mini."""

    config: Llada2Config

    tempered = True

    def groups(self) -> tuple[Group, ...]:
        c = self.config
        choose = functools.partial(
            group_limited,
            k=c.num_experts_per_tok,
            groups=c.n_group,
            kept=c.topk_group,
            factor=c.routed_scaling_factor,
        )
        mixture = functools.partial(
            Mixture,
            c.num_experts,
            c.moe_intermediate_size,
            choose,
            bias=True,
            shared=c.num_shared_experts * c.moe_intermediate_size,
            scale=c.output_scale,
        )
        mlp = functools.partial(SwiGLU, c.mlp_hidden_size, scale=c.output_scale)
        dense = Group("dense", c.first_k_dense_replace, mlp)
        routed = Group("layers", c.n_layers - c.first_k_dense_replace, mixture)
        return (dense, routed) if dense.depth else (routed,)


def group_limited(
    logits: Float[Array, "n X"], bias: Float[Array, " X"] | None, *, k: int, groups: int, kept: int, factor: float
) -> Routes:
    """The k best experts of the `kept` best groups; a group is as good as its two best experts together.

    Experts are ranked by sigmoid plus bias and weighted by sigmoid alone, renormalised, times `factor`.
    """
    likely = jax.nn.sigmoid(logits)
    ranked = likely if bias is None else likely + bias[None]
    grouped = ranked.reshape(ranked.shape[0], groups, -1)
    best_two, _ = jax.lax.top_k(grouped, 2)
    _, best = jax.lax.top_k(jnp.sum(best_two, axis=-1), kept)
    open_ = jnp.any(best[..., None] == jnp.arange(groups, dtype=best.dtype)[None, None], axis=1)
    _, chosen = jax.lax.top_k(jnp.where(open_[..., None], grouped, -jnp.inf).reshape(ranked.shape), k)
    weights = jnp.take_along_axis(likely, chosen, axis=-1)
    if k > 1:
        weights = weights / (jnp.sum(weights, axis=-1, keepdims=True) + 1e-20)
    return weights * factor, chosen
