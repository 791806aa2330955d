"""Fast-dLLM v2 (`Fast_dLLM_QwenForCausalLM`): Qwen2's names with biases; the small size ties the head."""

from jaxdiff.convert.families.names import ATTENTION, NORMS, QKV_BIASES, layers, mlp, model

TABLE = model(layers(*NORMS, *ATTENTION, *QKV_BIASES, *mlp()))
