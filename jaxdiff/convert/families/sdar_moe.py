"""SDAR's mixtures (`SDARMoeForCausalLM`): Qwen3-MoE's names, a routed mixture in every layer."""

from jaxdiff.convert.families.names import ATTENTION, NORMS, QK_NORMS, ROUTED, layers, model

TABLE = model(layers(*NORMS, *ATTENTION, *QK_NORMS, *ROUTED))
