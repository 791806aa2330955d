"""Qwen2 and Qwen3 as diffusion models: their own names; Qwen2 has the biases, Qwen3 the norms of queries and keys."""

from jaxdiff.convert.families.names import ATTENTION, NORMS, QK_NORMS, QKV_BIASES, layers, mlp, model

TABLE = model(layers(*NORMS, *ATTENTION, *QKV_BIASES, *QK_NORMS, *mlp()))
