"""iLLaDA (`ILLaDAForCausalLM`): Llama's names; the head is tied."""

from jaxdiff.convert.families.names import ATTENTION, NORMS, layers, mlp, model

TABLE = model(layers(*NORMS, *ATTENTION, *mlp()))
