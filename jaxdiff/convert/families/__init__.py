"""One mapping table per family: the names that it publishes its tensors under -> our leaves."""

from jaxdiff.convert.families import (
    dream,
    enat,
    fast_dllm_v2,
    illada,
    insertion,
    llada,
    llada2,
    llada_moe,
    llama,
    qwen2,
    qwen3,
    qwen_diffusion,
    sdar,
    sdar_moe,
    stable_diffcoder,
)

TABLES = {
    "llada": llada.TABLE,
    "illada": illada.TABLE,
    "insertion": insertion.TABLE,
    "enat": enat.TABLE,
    "stable_diffcoder": stable_diffcoder.TABLE,
    "dream": dream.TABLE,
    "llada_moe": llada_moe.TABLE,
    "llada2": llada2.TABLE,
    "sdar": sdar.TABLE,
    "sdar_moe": sdar_moe.TABLE,
    "qwen_diffusion": qwen_diffusion.TABLE,
    "fast_dllm_v2": fast_dllm_v2.TABLE,
    "llama": llama.TABLE,
    "qwen2": qwen2.TABLE,
    "qwen3": qwen3.TABLE,
}
