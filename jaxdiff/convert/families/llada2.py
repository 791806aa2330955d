"""LLaDA2 (`LLaDA2MoeModelLM`): the first layers are dense, the rest a routed mixture beside a shared expert.

Queries, keys and values are one fused matrix [(H + 2K)E, D], cut by rows.
"""

from jaxdiff.convert.table import dense, same, stack

_ATTENTION = (
    same("input_layernorm.weight", "attn_norm/weight"),
    dense("attention.query_key_value.weight", "q_proj/kernel", "k_proj/kernel", "v_proj/kernel"),
    same("attention.query_key_value.bias", "q_proj/bias", "k_proj/bias", "v_proj/bias"),
    same("attention.query_layernorm.weight", "q_norm/weight"),
    same("attention.key_layernorm.weight", "k_norm/weight"),
    dense("attention.dense.weight", "attn_out/kernel"),
    same("post_attention_layernorm.weight", "ff_norm/weight"),
)

TABLE = (
    same("model.word_embeddings.weight", "wte"),
    same("model.norm.weight", "ln_f/weight"),
    dense("lm_head.weight", "head", tied="wte"),
    *stack(
        "model.layers.{n}.",
        "dense/",
        *_ATTENTION,
        dense("mlp.gate_proj.weight", "ff_proj/kernel"),
        dense("mlp.up_proj.weight", "up_proj/kernel"),
        dense("mlp.down_proj.weight", "ff_out/kernel"),
    ),
    *stack(
        "model.layers.{n}.",
        "layers/",
        *_ATTENTION,
        dense("mlp.gate.weight", "router/kernel"),
        same("mlp.gate.expert_bias", "router/bias"),
        dense("mlp.experts.{e}.gate_proj.weight", "experts/ff_proj"),
        dense("mlp.experts.{e}.up_proj.weight", "experts/up_proj"),
        dense("mlp.experts.{e}.down_proj.weight", "experts/ff_out"),
        dense("mlp.shared_experts.gate_proj.weight", "shared/ff_proj/kernel"),
        dense("mlp.shared_experts.up_proj.weight", "shared/up_proj/kernel"),
        dense("mlp.shared_experts.down_proj.weight", "shared/ff_out/kernel"),
        after="dense/",
    ),
)
