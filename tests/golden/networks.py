"""Tiny random networks under the names that their families publish: config.json's contents, and float32 tensors.

The numbers come from numpy, one generator for each tensor, so that they depend on no initialiser and on no layout of
the library. The head is sharp enough for thresholds to be met, and end-of-text is likely enough to occur.
"""

import itertools
import zlib

import numpy as np

MASK, EOS, EOT, VOCAB = 3, 1, 2, 61
WIDTH, HEADS, KV, SIZE, INNER, EXPERTS, EXPERT = 32, 4, 2, 8, 48, 8, 24
IDS = {"vocab_size": VOCAB, "mask_token_id": MASK, "eos_token_id": EOS, "eot_token_id": EOT}
LLADA = IDS | {
    "architectures": ["LLaDAModelLM"],
    "d_model": WIDTH,
    "n_layers": 2,
    "n_heads": HEADS,
    "n_kv_heads": KV,
    "mlp_hidden_size": INNER,
    "rope_theta": 5000.0,
    "max_sequence_length": 128,
}
HF = IDS | {
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV,
    "head_dim": SIZE,
    "intermediate_size": INNER,
    "rope_theta": 1000.0,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
}
ROUTED = {"num_experts": EXPERTS, "num_experts_per_tok": 3}
LLADA2 = {
    "architectures": ["LLaDA2MoeModelLM"],
    "moe_intermediate_size": EXPERT,
    "num_shared_experts": 1,
    "n_group": 4,
    "topk_group": 2,
    "first_k_dense_replace": 1,
    "partial_rotary_factor": 0.5,
    "attention_block": 4,
}
CONFIGS = {
    "llada": LLADA,
    "prefix_lm": LLADA | {"prefix_lm": True},
    "dream": HF | {"architectures": ["DreamModel"]},
    "sdar": HF | {"architectures": ["SDARForCausalLM"], "attention_block": 4},
    "llada_moe": {k: v for k, v in HF.items() if k != "intermediate_size"}
    | ROUTED
    | {"architectures": ["LLaDAMoEModelLM"], "expert_intermediate_size": EXPERT},
    "llada2": HF | ROUTED | LLADA2,
}
SEEDS = {"llada": 0, "prefix_lm": 0, "dream": 1, "sdar": 2, "llada_moe": 3, "llada2": 4}


def tensors(name):
    """Published tensor names -> float32 arrays, PyTorch's [out, in]."""
    return {key: _random(SEEDS[name], key, shape) for key, shape in _shapes(name).items()}


def layers(kind, block):
    """(kernel [in, out], bias) of each layer of a random learned filter: `block` of that width, or `local`, reach 3."""
    widths = (block, block, block) if kind == "block" else (6 * 7 + 4, 8, 1)
    rng = np.random.default_rng([5, block])
    return [
        (4 * rng.uniform(-1, 1, (i, o)).astype(np.float32) * i**-0.5, rng.uniform(-1, 1, o).astype(np.float32))
        for i, o in itertools.pairwise(widths)
    ]


def _random(seed, name, shape):
    noise = np.random.default_rng([seed, zlib.crc32(name.encode())]).standard_normal(shape)
    if "norm" in name or name.endswith("ln_f.weight"):
        noise = 1 + 0.2 * noise
    elif len(shape) < 2:
        noise *= 0.2
    elif name in ("model.transformer.ff_out.weight", "lm_head.weight"):
        noise *= 3.0 * shape[1] ** -0.5
        noise[EOS] *= 1.6
    elif not name.endswith(("wte.weight", "embed_tokens.weight", "word_embeddings.weight")):
        noise *= shape[1] ** -0.5
    return noise.astype(np.float32)


def _shapes(name):
    """The names and shapes of a family's tensors."""
    if name in ("llada", "prefix_lm"):
        return _llada()
    top = "model.word_embeddings.weight" if name == "llada2" else "model.embed_tokens.weight"
    found = {top: (VOCAB, WIDTH), "model.norm.weight": (WIDTH,), "lm_head.weight": (VOCAB, WIDTH)}
    for n in range(2):
        at = f"model.layers.{n}."
        found |= {at + "input_layernorm.weight": (WIDTH,), at + "post_attention_layernorm.weight": (WIDTH,)}
        if name == "llada2":
            found |= {
                at + "attention.query_key_value.weight": ((HEADS + 2 * KV) * SIZE, WIDTH),
                at + "attention.query_layernorm.weight": (SIZE,),
                at + "attention.key_layernorm.weight": (SIZE,),
                at + "attention.dense.weight": (WIDTH, HEADS * SIZE),
            }
        else:
            for part, out in (("q", HEADS * SIZE), ("k", KV * SIZE), ("v", KV * SIZE)):
                found[f"{at}self_attn.{part}_proj.weight"] = (out, WIDTH)
                if name == "dream":
                    found[f"{at}self_attn.{part}_proj.bias"] = (out,)
                elif part != "v":
                    found[f"{at}self_attn.{part}_norm.weight"] = (SIZE,)
            found[at + "self_attn.o_proj.weight"] = (WIDTH, HEADS * SIZE)
        if name in ("llada_moe", "llada2") and (name, n) != ("llada2", 0):
            found[at + "mlp.gate.weight"] = (EXPERTS, WIDTH)
            for e in range(EXPERTS):
                found |= _gated(f"{at}mlp.experts.{e}.", EXPERT)
            if name == "llada2":
                found[at + "mlp.gate.expert_bias"] = (EXPERTS,)
                found |= _gated(at + "mlp.shared_experts.", EXPERT)
        else:
            found |= _gated(at + "mlp.", INNER)
    return found


def _gated(at, inner):
    up = {f"{at}{part}_proj.weight": (inner, WIDTH) for part in ("gate", "up")}
    return up | {at + "down_proj.weight": (WIDTH, inner)}


def _llada():
    top = "model.transformer."
    found = {top + "wte.weight": (VOCAB, WIDTH), top + "ln_f.weight": (WIDTH,), top + "ff_out.weight": (VOCAB, WIDTH)}
    for n in range(2):
        at = f"{top}blocks.{n}."
        found |= {at + f"{part}_norm.weight": (WIDTH,) for part in ("attn", "ff")}
        found |= {at + f"{part}_proj.weight": (KV * SIZE, WIDTH) for part in ("k", "v")}
        found |= {at + f"{part}_proj.weight": (INNER, WIDTH) for part in ("ff", "up")}
        found |= {at + "q_proj.weight": (HEADS * SIZE, WIDTH), at + "attn_out.weight": (WIDTH, HEADS * SIZE)}
        found[at + "ff_out.weight"] = (WIDTH, INNER)
    return found
