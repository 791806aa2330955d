"""Tiny random PyTorch networks of each family, with the names and the config.json that the family publishes.

Classes of `transformers` where they compute what the family publishes, with an open or a block mask in place of the
causal one; LLaDA2 is a transcription of its published equations. None of it shares code with the library.
"""

import copy
import dataclasses
import functools
import re

import numpy as np
import torch
import transformers
from torch import nn
from torch.nn import functional as F

torch.set_num_threads(1)  # matrices are tiny, and threads that wait for each other slow the other tests
VOCAB, MASK, EOS = 61, 3, 1
SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": EOS,
    "pad_token_id": EOS,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000.0,
    "tie_word_embeddings": False,
}
IDS = {"mask_token_id": MASK}


@dataclasses.dataclass
class Network:
    """A PyTorch model, what its family would publish of it, and where its layers are."""

    config: dict  # config.json
    module: nn.Module
    rename: list  # (pattern, replacement): the module's names -> the published ones
    block: int | None = None
    shifted: bool = False

    def tensors(self):
        """Published names -> numpy."""
        out = {}
        for key, value in self.module.state_dict().items():
            if key == "lm_head.weight" and self.config.get("tie_word_embeddings"):
                continue
            if key.endswith("experts.gate_up_proj"):  # fused and stacked in transformers, apart in the published files
                for e, both in enumerate(value):
                    for name, half in zip(("gate_proj", "up_proj"), both.chunk(2), strict=True):
                        out[key.replace("gate_up_proj", f"{e}.{name}.weight")] = half
            elif key.endswith("experts.down_proj"):
                out |= {key.replace("down_proj", f"{e}.down_proj.weight"): one for e, one in enumerate(value)}
            else:
                for pattern, replacement in self.rename:
                    key = re.sub(pattern, replacement, key)
                out[key] = value
        return {key: value.detach().float().numpy().copy() for key, value in out.items()}

    @torch.no_grad()
    def run(self, tokens, at=None, sees=None):
        """(the stream after each layer [N T D], logits [T V]) of one row without padding.

        `at`: the tokens' positions, default one after the other; `sees` [T T]: what hides tokens from each other.
        """
        tokens = torch.as_tensor(np.asarray(tokens))[None].long()
        at = torch.arange(tokens.shape[1]) if at is None else at
        seen = torch.ones(len(at), len(at), dtype=torch.bool)
        if self.block:
            seen = at[None] // self.block <= at[:, None] // self.block
        seen = seen if sees is None else seen & sees
        dtype = next(self.module.parameters()).dtype
        bias = torch.where(seen, 0.0, torch.finfo(dtype).min).to(dtype)[None, None]
        streams = []

        def keep(_, __, output):
            streams.append(output[0] if isinstance(output, tuple) else output)

        hooks = [layer.register_forward_hook(keep) for layer in self.module.model.layers]
        logits = self.module(input_ids=tokens, attention_mask=bias, position_ids=at[None]).logits
        for hook in hooks:
            hook.remove()
        if self.shifted:
            logits = torch.cat([logits[:, :1], logits[:, :-1]], dim=1)
        return np.stack([x[0].float().numpy() for x in streams]), logits[0].float().numpy()

    def chosen(self, tokens):
        """The experts of each token [T k], one mixture after another."""
        found = []

        def keep(_, __, output):
            ids = [x for x in output if isinstance(x, list) or not torch.is_floating_point(x)]
            found.append(np.asarray(ids[0], np.int32))

        gates = [module for name, module in self.module.named_modules() if name.endswith("mlp.gate")]
        hooks = [gate.register_forward_hook(keep) for gate in gates]
        self.run(tokens)
        for hook in hooks:
            hook.remove()
        return found

    def at(self, dtype):
        """The same network, its weights rounded to `dtype`; buffers (frequencies, expert biases) are not."""
        module = copy.deepcopy(self.module).to(dtype)
        for name, value in self.module.named_buffers():
            module.get_buffer(name).data = value
        return dataclasses.replace(self, module=module)

    def logits(self, tokens, at=None, sees=None):
        """Float64 [1 T V], with [MASK] excluded: what a published sampler is given here."""
        logits = torch.as_tensor(self.run(np.asarray(tokens)[0], at, sees)[1]).double()[None]
        logits[..., MASK] = -torch.inf
        return logits


def randomise(module, seed, sharpness=1.0):
    """Every parameter and buffer of a size that matters: the default start would hide a wrong scale or bias."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in module.state_dict().items():
        noise = torch.randn(value.shape, generator=generator)
        if "norm" in name:
            value.copy_(1 + 0.2 * noise)
        elif value.ndim < 2:
            value.copy_(0.2 * noise)
        elif "embed" in name:
            value.copy_(noise)
        else:
            value.copy_(noise * value.shape[-1] ** -0.5 * (sharpness if "lm_head" in name else 1.0))


def _hf(name, **changes):
    config = getattr(transformers, f"{name}Config")(**(SHAPE | changes), attn_implementation="eager")
    kind = "ForMaskedLM" if name == "EuroBert" else "ForCausalLM"
    return getattr(transformers, name + kind)(config)


def llada():
    module = _hf("EuroBert", rope_theta=5000.0, rms_norm_eps=1e-5, mask_token_id=MASK)
    config = {
        "architectures": ["LLaDAModelLM"],
        "model_type": "llada",
        "d_model": 32,
        "n_layers": 2,
        "n_heads": 4,
        "n_kv_heads": 2,
        "mlp_hidden_size": 48,
        "vocab_size": VOCAB,
        "rope_theta": 5000.0,
        "rms_norm_eps": 1e-5,
        "max_sequence_length": 64,
        "eos_token_id": EOS,
    }
    rename = [
        (r"model\.embed_tokens", "model.transformer.wte"),
        (r"model\.norm", "model.transformer.ln_f"),
        (r"lm_head", "model.transformer.ff_out"),
        (r"model\.layers", "model.transformer.blocks"),
        (r"input_layernorm", "attn_norm"),
        (r"post_attention_layernorm", "ff_norm"),
        (r"self_attn\.o_proj", "attn_out"),
        (r"self_attn\.", ""),
        (r"mlp\.gate_proj", "ff_proj"),
        (r"mlp\.up_proj", "up_proj"),
        (r"mlp\.down_proj", "ff_out"),
    ]
    return Network(config | IDS, module, rename)


def illada():
    config = SHAPE | IDS | {"tie_word_embeddings": True, "layer_norm_eps": None}
    config |= {"architectures": ["ILLaDAForCausalLM"], "model_type": "illada"}
    return Network(config, _hf("Llama", tie_word_embeddings=True), [])


def dream():
    config = SHAPE | IDS | {"architectures": ["DreamModel"], "model_type": "Dream"}
    return Network(config, _hf("Qwen2"), [], shifted=True)


def sdar():
    change = {"head_dim": 16, "tie_word_embeddings": True}
    config = SHAPE | IDS | change | {"architectures": ["SDARForCausalLM"], "model_type": "sdar"}
    return Network(config, _hf("Qwen3", **change), [], block=4)


def a2d_qwen3():
    change = {"head_dim": 16, "tie_word_embeddings": True}
    config = SHAPE | IDS | change | {"architectures": ["A2DQwen3LMHeadModel"], "model_type": "a2d-qwen3"}
    return Network(config, _hf("Qwen3", **change), [])


def a2d_qwen2():
    """As dllm's BD3LM trains it, block-causally."""
    config = SHAPE | IDS | {"architectures": ["A2DQwen2LMHeadModel"], "model_type": "a2d-qwen2", "block_size": 4}
    return Network(config, _hf("Qwen2"), [], block=4)


def open_dcoder():
    change = {"tie_word_embeddings": True}
    config = SHAPE | IDS | change | {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}
    return Network(config, _hf("Qwen2", **change), [], shifted=True)


def llama():
    change = {"tie_word_embeddings": True}
    config = SHAPE | change | {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    return Network(config, _hf("Llama", **change), [], block=1, shifted=True)


def qwen2():
    config = SHAPE | {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}
    return Network(config, _hf("Qwen2"), [], block=1, shifted=True)


def qwen3():
    change = {"head_dim": 16, "tie_word_embeddings": True}
    config = SHAPE | change | {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}
    return Network(config, _hf("Qwen3", **change), [], block=1, shifted=True)


def stable_diffcoder():
    config = SHAPE | IDS | {"architectures": ["StableDiffcoderForCausalLM"], "model_type": "llama"}
    return Network(config, _hf("Llama"), [], block=4)


def sdar_moe():
    change = {"num_experts": 8, "num_experts_per_tok": 3, "norm_topk_prob": True, "moe_intermediate_size": 24}
    change |= {"head_dim": 16, "decoder_sparse_step": 1, "mlp_only_layers": []}
    config = SHAPE | IDS | change | {"architectures": ["SDARMoeForCausalLM"], "model_type": "sdar_moe"}
    return Network(config, _hf("Qwen3Moe", **change), [], block=4)


def fast_dllm_v2():
    config = SHAPE | IDS | {"architectures": ["Fast_dLLM_QwenForCausalLM"], "model_type": "Fast_dLLM_Qwen"}
    return Network(config | {"bd_size": 4}, _hf("Qwen2"), [], block=4, shifted=True)


def llada_moe():
    mixture = {"num_experts": 8, "num_experts_per_tok": 3, "norm_topk_prob": False}
    module = _hf("Qwen3Moe", **mixture, moe_intermediate_size=24, head_dim=8)
    config = {k: v for k, v in SHAPE.items() if k != "intermediate_size"} | IDS | mixture
    config |= {"architectures": ["LLaDAMoEModelLM"], "model_type": "llada", "expert_intermediate_size": 24}
    return Network(config, module, [])


def llada2():
    mixture = {
        "num_hidden_layers": 3,
        "num_experts": 8,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 24,
        "num_shared_experts": 1,
        "n_group": 4,
        "topk_group": 2,
        "routed_scaling_factor": 2.5,
        "first_k_dense_replace": 1,
        "head_dim": 16,
        "partial_rotary_factor": 0.5,
        "use_qk_norm": True,
        "use_bias": False,
    }
    config = SHAPE | IDS | mixture | {"architectures": ["LLaDA2MoeModelLM"], "model_type": "llada2_moe"}
    return Network(config | {"attention_block": 4}, Llada2(config), [], block=4)


class _Norm(nn.Module):
    def __init__(self, width, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x):
        wide = x.float()
        return self.weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)).to(x.dtype)


class _Gated(nn.Module):
    def __init__(self, width, inner):
        super().__init__()
        self.gate_proj = nn.Linear(width, inner, bias=False)
        self.up_proj = nn.Linear(width, inner, bias=False)
        self.down_proj = nn.Linear(inner, width, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class _Gate(nn.Module):
    """Sigmoid scores; a group counts as its two best experts, bias included; the bias is for the choice alone."""

    def __init__(self, c):
        super().__init__()
        self.c = c
        self.weight = nn.Parameter(torch.zeros(c["num_experts"], c["hidden_size"]))
        self.register_buffer("expert_bias", torch.zeros(c["num_experts"]))

    def forward(self, x):
        scores = torch.sigmoid(F.linear(x.float(), self.weight.float()))
        chosen, weights = [], []
        for row in scores:  # one token at a time, so that nothing is shared with a batched way of saying it
            ranked = row + self.expert_bias.float()
            groups = ranked.view(self.c["n_group"], -1)
            best = groups.topk(2, dim=-1).values.sum(-1).topk(self.c["topk_group"]).indices.tolist()
            size = groups.shape[1]
            open_ = [i for i in range(len(row)) if i // size in best]
            mine = sorted(open_, key=lambda i, ranked=ranked: -float(ranked[i]))[: self.c["num_experts_per_tok"]]
            chosen.append(mine)
            weights.append(row[mine] / row[mine].sum() * self.c["routed_scaling_factor"])
        return chosen, weights


class _Mixture(nn.Module):
    def __init__(self, c):
        super().__init__()
        width, inner = c["hidden_size"], c["moe_intermediate_size"]
        self.gate = _Gate(c)
        self.experts = nn.ModuleList(_Gated(width, inner) for _ in range(c["num_experts"]))
        self.shared_experts = _Gated(width, inner * c["num_shared_experts"])

    def forward(self, x):
        chosen, weights = self.gate(x)
        rows = [
            sum(w * self.experts[e](row).float() for e, w in zip(ids, each, strict=True)).to(row.dtype)
            for row, ids, each in zip(x, chosen, weights, strict=True)
        ]
        return torch.stack(rows) + self.shared_experts(x)


class _Attention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c, size = c, c["head_dim"]
        heads, kv = c["num_attention_heads"], c["num_key_value_heads"]
        self.query_key_value = nn.Linear(c["hidden_size"], (heads + 2 * kv) * size, bias=False)
        self.query_layernorm, self.key_layernorm = _Norm(size, c["rms_norm_eps"]), _Norm(size, c["rms_norm_eps"])
        self.dense = nn.Linear(heads * size, c["hidden_size"], bias=False)

    def forward(self, x, bias):
        c, length = self.c, len(x)
        heads, kv, size = c["num_attention_heads"], c["num_key_value_heads"], c["head_dim"]
        q, k, v = self.query_key_value(x).view(length, -1, size).split([heads, kv, kv], dim=1)
        rotary = int(size * c["partial_rotary_factor"])
        angle = torch.arange(length)[:, None] * c["rope_theta"] ** (-torch.arange(0, rotary, 2) / rotary)
        cos, sin = (torch.cat([f(angle)] * 2, -1).to(x.dtype)[:, None] for f in (torch.cos, torch.sin))

        def rotate(x):
            part, rest = x[..., :rotary], x[..., rotary:]
            half = torch.cat([-part[..., rotary // 2 :], part[..., : rotary // 2]], -1)
            return torch.cat([part * cos + half * sin, rest], -1)

        q, k = rotate(self.query_layernorm(q)), rotate(self.key_layernorm(k))
        k, v = (x.repeat_interleave(heads // kv, dim=1) for x in (k, v))
        scores = torch.einsum("qhe,khe->hqk", q, k) / size**0.5 + bias[0, 0]
        weights = scores.float().softmax(-1).to(x.dtype)
        return self.dense(torch.einsum("hqk,khe->qhe", weights, v).reshape(length, -1))


class _Layer(nn.Module):
    def __init__(self, c, dense):
        super().__init__()
        self.input_layernorm = _Norm(c["hidden_size"], c["rms_norm_eps"])
        self.attention = _Attention(c)
        self.post_attention_layernorm = _Norm(c["hidden_size"], c["rms_norm_eps"])
        self.mlp = _Gated(c["hidden_size"], c["intermediate_size"]) if dense else _Mixture(c)

    def forward(self, x, bias):
        x = x + self.attention(self.input_layernorm(x[0]), bias)[None]
        return x + self.mlp(self.post_attention_layernorm(x[0]))[None]


class Llada2(nn.Module):
    """LLaDA2MoeModelLM from its published equations, one row."""

    def __init__(self, c):
        super().__init__()
        layers = [_Layer(c, dense=i < c["first_k_dense_replace"]) for i in range(c["num_hidden_layers"])]
        self.model = nn.Module()
        self.model.word_embeddings = nn.Embedding(c["vocab_size"], c["hidden_size"])
        self.model.layers = nn.ModuleList(layers)
        self.model.norm = _Norm(c["hidden_size"], c["rms_norm_eps"])
        self.lm_head = nn.Linear(c["hidden_size"], c["vocab_size"], bias=False)

    def forward(self, input_ids, attention_mask, position_ids):
        del position_ids
        x = self.model.word_embeddings(input_ids)
        for layer in self.model.layers:
            x = layer(x, attention_mask)
        return transformers.modeling_outputs.MaskedLMOutput(logits=self.lm_head(self.model.norm(x)))


FAMILIES = {
    "llada": llada,
    "illada": illada,
    "dream": dream,
    "llada_moe": llada_moe,
    "llada2": llada2,
    "sdar": sdar,
    "sdar_moe": sdar_moe,
}
# Families whose layers are those of others, one of them under three names.
ALIKE = {
    "a2d_qwen2": a2d_qwen2,
    "a2d_qwen3": a2d_qwen3,
    "open_dcoder": open_dcoder,
    "stable_diffcoder": stable_diffcoder,
    "fast_dllm_v2": fast_dllm_v2,
    "llama": llama,
    "qwen2": qwen2,
    "qwen3": qwen3,
}


@functools.cache
def network(family, *, seed=1, sharpness=1.0):
    """One random network of a family, float32."""
    made = (FAMILIES | ALIKE)[family]()
    randomise(made.module, seed, sharpness)
    made.module.eval()
    return made
