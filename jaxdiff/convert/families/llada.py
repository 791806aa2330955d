"""LLaDA (`LLaDAModelLM`): names as ML-GSAI/LLaDA's `modeling_llada.py` gives them; `ff_out` is two things there."""

from jaxdiff.convert.table import dense, same, stack

TABLE = (
    same("model.transformer.wte.weight", "wte"),
    same("model.transformer.ln_f.weight", "ln_f/weight"),
    dense("model.transformer.ff_out.weight", "head", tied="wte"),
    *stack(
        "model.transformer.blocks.{n}.",
        "layers/",
        same("attn_norm.weight", "attn_norm/weight"),
        dense("q_proj.weight", "q_proj/kernel"),
        dense("k_proj.weight", "k_proj/kernel"),
        dense("v_proj.weight", "v_proj/kernel"),
        same("q_proj.bias", "q_proj/bias"),
        same("k_proj.bias", "k_proj/bias"),
        same("v_proj.bias", "v_proj/bias"),
        dense("attn_out.weight", "attn_out/kernel"),
        same("ff_norm.weight", "ff_norm/weight"),
        dense("ff_proj.weight", "ff_proj/kernel"),
        dense("up_proj.weight", "up_proj/kernel"),
        dense("ff_out.weight", "ff_out/kernel"),
    ),
)
