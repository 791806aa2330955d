"""Synthetic checkpoints as families publish them: config.json's contents and PyTorch-named tensors of random bits."""

import json

import ml_dtypes
import numpy as np
from safetensors.numpy import load_file, save_file

VOCAB, WIDTH, HEADS, KV_HEADS, SIZE, HIDDEN, LAYERS, EXPERTS = 61, 32, 4, 2, 8, 48, 2, 4

LLADA_CONFIG = {
    "architectures": ["LLaDAModelLM"],
    "model_type": "llada",
    "activation_type": "silu",
    "block_type": "llama",
    "d_model": WIDTH,
    "n_layers": LAYERS,
    "n_heads": HEADS,
    "n_kv_heads": KV_HEADS,
    "mlp_hidden_size": HIDDEN,
    "vocab_size": VOCAB,
    "embedding_size": VOCAB,
    "mask_token_id": 3,
    "eos_token_id": 1,
    "pad_token_id": 1,
    "weight_tying": False,
    "rope_theta": 10000.0,
}


_HF = {
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": SIZE,
    "intermediate_size": HIDDEN,
    "vocab_size": VOCAB,
    "mask_token_id": 3,
    "eos_token_id": 1,
    "tie_word_embeddings": False,
}
_CAUSAL = {k: v for k, v in _HF.items() if k != "mask_token_id"}
_EXPERTS = {"num_experts": EXPERTS, "num_experts_per_tok": 2}
_NO_DENSE = {k: v for k, v in _HF.items() if k != "intermediate_size"}  # no layer is
CONFIGS = {
    "llada": LLADA_CONFIG,
    "illada": _HF | {"architectures": ["ILLaDAForCausalLM"], "tie_word_embeddings": True},
    "stable_diffcoder": _HF | {"architectures": ["StableDiffcoderForCausalLM"]},
    "dream": _HF | {"architectures": ["DreamModel"]},
    "sdar": _HF | {"architectures": ["SDARForCausalLM"], "tie_word_embeddings": True, "block_size": 8},
    "fast_dllm_v2": _HF | {"architectures": ["Fast_dLLM_QwenForCausalLM"], "tie_word_embeddings": True, "bd_size": 8},
    "qwen_diffusion": _HF | {"architectures": ["A2DQwen3LMHeadModel"], "tie_word_embeddings": True},
    "llama": _CAUSAL | {"architectures": ["LlamaForCausalLM"], "tie_word_embeddings": True},
    "qwen2": _CAUSAL | {"architectures": ["Qwen2ForCausalLM"]},
    "qwen3": _CAUSAL | {"architectures": ["Qwen3ForCausalLM"]},
    "sdar_moe": _NO_DENSE
    | _EXPERTS
    | {"architectures": ["SDARMoeForCausalLM"], "moe_intermediate_size": HIDDEN, "norm_topk_prob": True},
    "llada_moe": _NO_DENSE
    | _EXPERTS
    | {
        "architectures": ["LLaDAMoEModelLM"],
        "expert_intermediate_size": HIDDEN,
        "moe_router_enable_expert_bias": True,
    },
    "llada2": _HF
    | _EXPERTS
    | {
        "architectures": ["LLaDA2MoeModelLM"],
        "num_hidden_layers": LAYERS + 1,
        "first_k_dense_replace": 1,
        "moe_intermediate_size": HIDDEN,
        "num_shared_experts": 1,
        "n_group": 2,
        "topk_group": 1,
    },
}
TIED = tuple(family for family, config in CONFIGS.items() if config.get("tie_word_embeddings"))


def llada_shapes(layers=LAYERS):
    """What LLaDA's files hold: [out, in] for every Linear."""
    kv = KV_HEADS * SIZE
    block = {
        "attn_norm.weight": (WIDTH,),
        "q_proj.weight": (WIDTH, WIDTH),
        "k_proj.weight": (kv, WIDTH),
        "v_proj.weight": (kv, WIDTH),
        "attn_out.weight": (WIDTH, WIDTH),
        "ff_norm.weight": (WIDTH,),
        "ff_proj.weight": (HIDDEN, WIDTH),
        "up_proj.weight": (HIDDEN, WIDTH),
        "ff_out.weight": (WIDTH, HIDDEN),
    }
    return {
        "model.transformer.wte.weight": (VOCAB, WIDTH),
        "model.transformer.ln_f.weight": (WIDTH,),
        "model.transformer.ff_out.weight": (VOCAB, WIDTH),
    } | {f"model.transformer.blocks.{n}.{name}": shape for n in range(layers) for name, shape in block.items()}


def _layer(n, *, norms=False, biases=False):
    """One layer's attention and norms as Qwen and OLMoE name them."""
    name, widths = f"model.layers.{n}", (("q", HEADS * SIZE), ("k", KV_HEADS * SIZE), ("v", KV_HEADS * SIZE))
    out = {f"{name}.input_layernorm.weight": (WIDTH,), f"{name}.post_attention_layernorm.weight": (WIDTH,)}
    out |= {f"{name}.self_attn.{p}_proj.weight": (width, WIDTH) for p, width in widths}
    out |= {f"{name}.self_attn.o_proj.weight": (WIDTH, HEADS * SIZE)}
    out |= {f"{name}.self_attn.{p}_norm.weight": (SIZE,) for p in "qk" if norms}
    return out | {f"{name}.self_attn.{p}_proj.bias": (width,) for p, width in widths if biases}


def _fused(n):
    """One layer's attention and norms as LLaDA2 names them."""
    name, out = f"model.layers.{n}", HEADS * SIZE
    return {
        f"{name}.input_layernorm.weight": (WIDTH,),
        f"{name}.post_attention_layernorm.weight": (WIDTH,),
        f"{name}.attention.query_key_value.weight": (out + 2 * KV_HEADS * SIZE, WIDTH),
        f"{name}.attention.query_layernorm.weight": (SIZE,),
        f"{name}.attention.key_layernorm.weight": (SIZE,),
        f"{name}.attention.dense.weight": (WIDTH, out),
    }


def _mlp(name):
    sides = {"gate": (HIDDEN, WIDTH), "up": (HIDDEN, WIDTH), "down": (WIDTH, HIDDEN)}
    return {f"{name}.{side}_proj.weight": shape for side, shape in sides.items()}


def _mixture(name, *, bias=True):
    experts = {k: v for e in range(EXPERTS) for k, v in _mlp(f"{name}.experts.{e}").items()}
    experts |= {f"{name}.gate.expert_bias": (EXPERTS,)} if bias else {}
    return experts | {f"{name}.gate.weight": (EXPERTS, WIDTH)}


def shapes(family):
    """The names and shapes of a family's tensors, written out from what it publishes."""
    if family == "llada":
        return llada_shapes()
    embedding = "word_embeddings" if family == "llada2" else "embed_tokens"
    out = {f"model.{embedding}.weight": (VOCAB, WIDTH), "model.norm.weight": (WIDTH,)}
    if family not in TIED:
        out |= {"lm_head.weight": (VOCAB, WIDTH)}
    if family == "llada2":
        out |= _fused(0) | _mlp("model.layers.0.mlp")
    for n in range(LAYERS):
        match family:
            case "illada" | "stable_diffcoder" | "llama":
                out |= _layer(n) | _mlp(f"model.layers.{n}.mlp")
            case "dream" | "fast_dllm_v2" | "qwen2":
                out |= _layer(n, biases=True) | _mlp(f"model.layers.{n}.mlp")
            case "sdar" | "qwen_diffusion" | "qwen3":
                out |= _layer(n, norms=True) | _mlp(f"model.layers.{n}.mlp")
            case "llada_moe" | "sdar_moe":
                mixture = _mixture(f"model.layers.{n}.mlp", bias=family == "llada_moe")
                out |= _layer(n, norms=True) | mixture
            case "llada2":
                name = f"model.layers.{n + 1}"
                out |= _fused(n + 1) | _mixture(f"{name}.mlp") | _mlp(f"{name}.mlp.shared_experts")
    return out


def tensors(shapes, seed=0, dtype=ml_dtypes.bfloat16):
    generator = np.random.default_rng(seed)
    return {key: generator.normal(0, 0.1, shape).astype(dtype) for key, shape in shapes.items()}


def write_folder(folder, config, arrays, *, shards=1):
    """A published folder without a tokenizer; in `shards` files with their index, or in one."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    keys = list(arrays)
    if shards == 1:
        save_file(arrays, folder / "model.safetensors")
        return folder
    where = {key: f"model-{i % shards + 1:05}-of-{shards:05}.safetensors" for i, key in enumerate(keys)}
    for name in set(where.values()):
        save_file({key: arrays[key] for key in keys if where[key] == name}, folder / name)
    write_index(folder, where)
    return folder


def write_index(folder, where):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


def read_folder(folder):
    """All tensors of a published folder."""
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found
