"""Dream (`DreamModel`): Qwen2's names; queries, keys and values have biases."""

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
        same("self_attn.q_proj.bias", "q_proj/bias"),
        same("self_attn.k_proj.bias", "k_proj/bias"),
        same("self_attn.v_proj.bias", "v_proj/bias"),
        dense("self_attn.o_proj.weight", "attn_out/kernel"),
        same("post_attention_layernorm.weight", "ff_norm/weight"),
        dense("mlp.gate_proj.weight", "ff_proj/kernel"),
        dense("mlp.up_proj.weight", "up_proj/kernel"),
        dense("mlp.down_proj.weight", "ff_out/kernel"),
    ),
)
