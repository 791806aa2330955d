"""An ENAT's tensors: LLaDA's for what encodes, and those of the layers of masks. Nobody publishes one for text: the
names are ours.
"""

from jaxdiff.convert.families import llada
from jaxdiff.convert.table import dense, same, stack

TABLE = (
    *llada.TABLE,
    same("model.transformer.encoded_norm.weight", "encoded_norm/weight"),
    *stack(
        "model.transformer.decoder.{n}.",
        "decoder/",
        same("attn_norm.weight", "attn_norm/weight"),
        dense("q_proj.weight", "q_proj/kernel"),
        dense("k_proj.weight", "k_proj/kernel"),
        dense("v_proj.weight", "v_proj/kernel"),
        dense("k_encoded.weight", "k_encoded/kernel"),
        dense("v_encoded.weight", "v_encoded/kernel"),
        same("q_proj.bias", "q_proj/bias"),
        same("k_proj.bias", "k_proj/bias"),
        same("v_proj.bias", "v_proj/bias"),
        same("k_encoded.bias", "k_encoded/bias"),
        same("v_encoded.bias", "v_encoded/bias"),
        dense("attn_out.weight", "attn_out/kernel"),
        same("ff_norm.weight", "ff_norm/weight"),
        dense("ff_proj.weight", "ff_proj/kernel"),
        dense("up_proj.weight", "up_proj/kernel"),
        dense("ff_out.weight", "ff_out/kernel"),
    ),
)
