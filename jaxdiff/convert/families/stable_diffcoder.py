"""Stable-DiffCoder (`StableDiffcoderForCausalLM`): Llama's names."""

from jaxdiff.convert.families.names import ATTENTION, NORMS, layers, mlp, model

TABLE = model(layers(*NORMS, *ATTENTION, *mlp()))
