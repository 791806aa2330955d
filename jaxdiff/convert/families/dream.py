"""Dream (`DreamModel`): Qwen2's names; queries, keys and values have biases."""

from jaxdiff.convert.families.names import ATTENTION, NORMS, QKV_BIASES, layers, mlp, model

TABLE = model(layers(*NORMS, *ATTENTION, *QKV_BIASES, *mlp()))
