"""Synthetic checkpoints as families publish them: config.json's contents and PyTorch-named tensors of random bits."""

import ml_dtypes
import numpy as np

VOCAB, WIDTH, HEADS, KV_HEADS, SIZE, HIDDEN, LAYERS = 61, 32, 4, 2, 8, 48, 2

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


def tensors(shapes, seed=0, dtype=ml_dtypes.bfloat16):
    generator = np.random.default_rng(seed)
    return {key: generator.normal(0, 0.1, shape).astype(dtype) for key, shape in shapes.items()}


def expected_plans():
    """For each family that shares Hugging Face's names: our leaves, and the tensors that must be asked for."""
    d, h, kv, f, v, x = WIDTH, HEADS * SIZE, KV_HEADS * SIZE, HIDDEN, VOCAB, 3

    def leaves(group, n, *, norms=False, biases=False, mlp=True):
        out = {
            "attn_norm/weight": (d,),
            "ff_norm/weight": (d,),
            "q_proj/kernel": (d, h),
            "k_proj/kernel": (d, kv),
            "v_proj/kernel": (d, kv),
            "attn_out/kernel": (h, d),
        }
        if mlp:
            out |= {"ff_proj/kernel": (d, f), "up_proj/kernel": (d, f), "ff_out/kernel": (f, d)}
        if norms:
            out |= {"q_norm/weight": (SIZE,), "k_norm/weight": (SIZE,)}
        if biases:
            out |= {"q_proj/bias": (h,), "k_proj/bias": (kv,), "v_proj/bias": (kv,)}
        return {f"{group}/{name}": (n, *shape) for name, shape in out.items()}

    def layer(n, *, norms=False, biases=False):
        name = f"model.layers.{n}"
        out = {f"{name}.input_layernorm.weight": (d,), f"{name}.post_attention_layernorm.weight": (d,)}
        out |= {f"{name}.self_attn.{p}_proj.weight": (w, d) for p, w in (("q", h), ("k", kv), ("v", kv))}
        out |= {f"{name}.self_attn.o_proj.weight": (d, h)}
        if norms:
            out |= {f"{name}.self_attn.{p}_norm.weight": (SIZE,) for p in "qk"}
        if biases:
            out |= {f"{name}.self_attn.{p}_proj.bias": (w,) for p, w in (("q", h), ("k", kv), ("v", kv))}
        return out

    def mlp(name):
        return {
            f"{name}.gate_proj.weight": (f, d),
            f"{name}.up_proj.weight": (f, d),
            f"{name}.down_proj.weight": (d, f),
        }

    def experts(group, n):
        shapes = {"ff_proj": (d, f), "up_proj": (d, f), "ff_out": (f, d)}
        return {f"{group}/experts/{name}": (n, x, *shape) for name, shape in shapes.items()} | {
            f"{group}/router/kernel": (n, d, x),
            f"{group}/router/bias": (n, x),
        }

    def mixture(n):
        name = f"model.layers.{n}.mlp"
        out = {f"{name}.gate.weight": (x, d), f"{name}.gate.expert_bias": (x,)}
        return out | {k: v for e in range(x) for k, v in mlp(f"{name}.experts.{e}").items()}

    def fused(n):
        name = f"model.layers.{n}"
        return {
            f"{name}.input_layernorm.weight": (d,),
            f"{name}.post_attention_layernorm.weight": (d,),
            f"{name}.attention.query_key_value.weight": (h + 2 * kv, d),
            f"{name}.attention.query_layernorm.weight": (SIZE,),
            f"{name}.attention.key_layernorm.weight": (SIZE,),
            f"{name}.attention.dense.weight": (d, h),
        }

    def ends(embedding="embed_tokens", *, tied=False):
        out = {f"model.{embedding}.weight": (v, d), "model.norm.weight": (d,)}
        return out if tied else out | {"lm_head.weight": (v, d)}

    def layers(indices, *kinds):
        return {key: shape for n in indices for kind in kinds for key, shape in kind(n).items()}

    ours = {"wte": (v, d), "ln_f/weight": (d,)}
    head = ours | {"head": (d, v)}
    shared = {"ff_proj": (d, f), "up_proj": (d, f), "ff_out": (f, d)}
    routed = leaves("layers", 2, norms=True, mlp=False) | experts("layers", 2)
    return {
        "dream": (
            head | leaves("layers", 2, biases=True),
            ends() | layers((0, 1), lambda n: layer(n, biases=True), lambda n: mlp(f"model.layers.{n}.mlp")),
        ),
        "sdar": (
            ours | leaves("layers", 2, norms=True),
            ends(tied=True) | layers((0, 1), lambda n: layer(n, norms=True), lambda n: mlp(f"model.layers.{n}.mlp")),
        ),
        "llada_moe": (
            head | routed,
            ends() | layers((0, 1), lambda n: layer(n, norms=True), mixture),
        ),
        "llada2": (
            head
            | leaves("dense", 1, norms=True)
            | routed
            | {f"layers/shared/{name}/kernel": (2, *shape) for name, shape in shared.items()},
            ends("word_embeddings")
            | fused(0)
            | mlp("model.layers.0.mlp")
            | layers((1, 2), fused, mixture, lambda n: mlp(f"model.layers.{n}.mlp.shared_experts")),
        ),
    }
