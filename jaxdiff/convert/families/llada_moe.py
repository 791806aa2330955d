"""LLaDA-MoE (`LLaDAMoEModelLM`): OLMoE's names, a routed mixture in every layer."""

from jaxdiff.convert.table import dense, same, stack

TABLE = (
    same("model.embed_tokens.weight", "wte"),
    same("model.norm.weight", "ln_f/weight"),
    dense("lm_head.weight", "head", tied="wte"),
    *stack(
        "model.layers.{n}.",
        "layers/",
        same("input_layernorm.weight", "attn_norm/weight"),
        dense("self_attn.q_proj.weight", "q_proj/kernel"),
        dense("self_attn.k_proj.weight", "k_proj/kernel"),
        dense("self_attn.v_proj.weight", "v_proj/kernel"),
        same("self_attn.q_norm.weight", "q_norm/weight"),
        same("self_attn.k_norm.weight", "k_norm/weight"),
        dense("self_attn.o_proj.weight", "attn_out/kernel"),
        same("post_attention_layernorm.weight", "ff_norm/weight"),
        dense("mlp.gate.weight", "router/kernel"),
        same("mlp.gate.expert_bias", "router/bias"),
        dense("mlp.experts.{e}.gate_proj.weight", "experts/ff_proj"),
        dense("mlp.experts.{e}.up_proj.weight", "experts/up_proj"),
        dense("mlp.experts.{e}.down_proj.weight", "experts/ff_out"),
    ),
)
