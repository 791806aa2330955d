"""Qwen2 and Qwen2.5 (`Qwen2ForCausalLM`): Llama's names with biases; small sizes tie the head."""

from jaxdiff.convert.families.names import ATTENTION, NORMS, QKV_BIASES, layers, mlp, model

TABLE = model(layers(*NORMS, *ATTENTION, *QKV_BIASES, *mlp()))
