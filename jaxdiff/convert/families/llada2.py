"""LLaDA2 (`LLaDA2MoeModelLM`): the first layers are dense, the rest a routed mixture beside a shared expert.

Queries, keys and values are one fused matrix [(H + 2K)E, D], cut by rows.
"""

from jaxdiff.convert.families.names import NORMS, ROUTED, layers, mlp, model
from jaxdiff.convert.table import dense, same

_ATTENTION = (
    dense("attention.query_key_value.weight", "q_proj/kernel", "k_proj/kernel", "v_proj/kernel"),
    same("attention.query_key_value.bias", "q_proj/bias", "k_proj/bias", "v_proj/bias"),
    same("attention.query_layernorm.weight", "q_norm/weight"),
    same("attention.key_layernorm.weight", "k_norm/weight"),
    dense("attention.dense.weight", "attn_out/kernel"),
)

TABLE = model(
    layers(*NORMS, *_ATTENTION, *mlp(), group="dense/"),
    layers(*NORMS, *_ATTENTION, *ROUTED, *mlp("mlp.shared_experts", "shared/"), after="dense/"),
    embedding="word_embeddings",
)
