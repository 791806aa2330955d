"""The tensor names that transformers gives a Llama-like model: what the families that speak them share.

A family's table is `model(layers(...))` of the groups of rules that its layers have.
"""

from jaxdiff.convert.table import Rule, Table, dense, same, stack

NORMS = (
    same("input_layernorm.weight", "attn_norm/weight"),
    same("post_attention_layernorm.weight", "ff_norm/weight"),
)
ATTENTION = (
    dense("self_attn.q_proj.weight", "q_proj/kernel"),
    dense("self_attn.k_proj.weight", "k_proj/kernel"),
    dense("self_attn.v_proj.weight", "v_proj/kernel"),
    dense("self_attn.o_proj.weight", "attn_out/kernel"),
)
QKV_BIASES = (
    same("self_attn.q_proj.bias", "q_proj/bias"),
    same("self_attn.k_proj.bias", "k_proj/bias"),
    same("self_attn.v_proj.bias", "v_proj/bias"),
)
QK_NORMS = (
    same("self_attn.q_norm.weight", "q_norm/weight"),
    same("self_attn.k_norm.weight", "k_norm/weight"),
)


def mlp(name: str = "mlp", leaf: str = "", kernel: str = "/kernel") -> Table:
    """The three matrices of a SwiGLU named `name`, whose leaves are {leaf}ff_proj{kernel} and so on."""
    return (
        dense(f"{name}.gate_proj.weight", f"{leaf}ff_proj{kernel}"),
        dense(f"{name}.up_proj.weight", f"{leaf}up_proj{kernel}"),
        dense(f"{name}.down_proj.weight", f"{leaf}ff_out{kernel}"),
    )


ROUTED = (
    dense("mlp.gate.weight", "router/kernel"),
    same("mlp.gate.expert_bias", "router/bias"),
    *mlp("mlp.experts.{e}", "experts/", kernel=""),
)


def layers(*rules: Rule, group: str = "layers/", after: str = "") -> Table:
    """Those rules in all layers of a group, which are counted from the end of the group `after`."""
    return stack("model.layers.{n}.", group, *rules, after=after)


def model(*groups: Table, embedding: str = "embed_tokens") -> Table:
    """The whole table: embedding, last norm, head, and the groups of layers."""
    return (
        same(f"model.{embedding}.weight", "wte"),
        same("model.norm.weight", "ln_f/weight"),
        dense("lm_head.weight", "head", tied="wte"),
        *(rule for group in groups for rule in group),
    )
