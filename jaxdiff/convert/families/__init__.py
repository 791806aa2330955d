"""One mapping table per family: the names that it publishes its tensors under -> our leaves."""

from jaxdiff.convert.families import dream, fast_dllm_v2, illada, llada, llada2, llada_moe, sdar

TABLES = {
    "llada": llada.TABLE,
    "illada": illada.TABLE,
    "dream": dream.TABLE,
    "llada_moe": llada_moe.TABLE,
    "llada2": llada2.TABLE,
    "sdar": sdar.TABLE,
    "fast_dllm_v2": fast_dllm_v2.TABLE,
}
