"""Qwen3 (`Qwen3ForCausalLM`): Llama's names; queries and keys are normalised; small sizes tie the head."""

from jaxdiff.convert.families.names import ATTENTION, NORMS, QK_NORMS, layers, mlp, model

TABLE = model(layers(*NORMS, *ATTENTION, *QK_NORMS, *mlp()))
