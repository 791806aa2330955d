"""Llama (`LlamaForCausalLM`): its own names, which other families share; small sizes tie the head."""

from jaxdiff.convert.families.names import ATTENTION, NORMS, layers, mlp, model

TABLE = model(layers(*NORMS, *ATTENTION, *mlp()))
