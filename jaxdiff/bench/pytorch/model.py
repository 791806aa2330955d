"""A dense LLaDA in PyTorch with keys and values, and Learn2PD's filter: what the published loops call.

Keys are kept after the rotary turn; the published code keeps them before it and turns all of them in each pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

KV = list[tuple[torch.Tensor, torch.Tensor]]  # keys and values [B K T E] of each layer
Join = Callable[[int, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def alone(layer: int, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Without a cache: the fed tokens see each other."""
    del layer
    return k, v


class Llada(nn.Module):
    """Every position sees all, but for a row's padding."""

    def __init__(self, config: Mapping[str, Any], weights: Mapping[str, torch.Tensor]) -> None:
        """`config`: fields of `LladaConfig`; `weights`: jaxdiff's leaves by path, such as `layers/q_proj/kernel`."""
        super().__init__()
        self.mask, self.eos = int(config["mask_token_id"]), int(config["eos_token_id"])
        heads, kv_heads = int(config["n_heads"]), int(config["n_kv_heads"])
        size, eps = int(config["d_model"]) // heads, float(config["rms_norm_eps"])
        self.wte = nn.Embedding.from_pretrained(weights["wte"])
        layers = [
            {name.removeprefix("layers/"): leaf[index] for name, leaf in weights.items() if name.startswith("layers/")}
            for index in range(int(config["n_layers"]))
        ]
        self.layers = nn.ModuleList([Layer(leaves, heads, kv_heads, size, eps) for leaves in layers])
        self.ln_f = Norm(weights["ln_f/weight"], eps)
        self.head = _linear(weights["head"][:, : int(config["vocab_size"])])
        frequency = float(config["rope_theta"]) ** (-torch.arange(size // 2, dtype=torch.float32) / (size // 2))
        angle = torch.arange(int(config["max_sequence_length"]), dtype=torch.float32)[:, None] * frequency
        self.register_buffer("cos", torch.cat([angle.cos()] * 2, -1))
        self.register_buffer("sin", torch.cat([angle.sin()] * 2, -1))
        self.requires_grad_(False)

    def forward(
        self,
        tokens: torch.Tensor,
        columns: torch.Tensor,
        seen: torch.Tensor | None,
        join: Join = alone,
    ) -> tuple[torch.Tensor, KV]:
        """Logits [B T V] of tokens [B T] at these columns [T], and keys and values as they were attended to.

        Args:
            seen: which columns hold a row's own tokens, [B 1 1 L]; None for all.
            join: what keys and values of a layer are attended to, given those of the fed tokens.

        [MASK] is never predicted: its logit is -inf. This is the one thing that the published loops do not do.
        """
        turn = self.cos[columns], self.sin[columns]
        x, kv = self.wte(tokens), []
        for index, layer in enumerate(self.layers):
            x, both = layer(x, turn, seen, lambda k, v, index=index: join(index, k, v))
            kv.append(both)
        logits = self.head(self.ln_f(x))
        logits[..., self.mask] = -torch.inf
        return logits, kv


class Layer(nn.Module):
    def __init__(self, leaves: Mapping[str, torch.Tensor], heads: int, kv_heads: int, size: int, eps: float) -> None:
        super().__init__()
        self.size, self.grouped = size, heads != kv_heads
        self.attn_norm, self.ff_norm = (Norm(leaves[f"{name}/weight"], eps) for name in ("attn_norm", "ff_norm"))

        def linear(name: str) -> nn.Linear:
            return _linear(leaves[f"{name}/kernel"], leaves.get(f"{name}/bias"))

        self.q_proj, self.k_proj, self.v_proj = linear("q_proj"), linear("k_proj"), linear("v_proj")
        self.attn_out = linear("attn_out")
        self.ff_proj, self.up_proj, self.ff_out = linear("ff_proj"), linear("up_proj"), linear("ff_out")

    def forward(
        self, x: torch.Tensor, turn: tuple[torch.Tensor, torch.Tensor], seen: torch.Tensor | None, join: Any
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        rows, length, _ = x.shape
        n = self.attn_norm(x)
        q, k, v = (
            project(n).view(rows, length, -1, self.size).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        k, v = join(_turned(k, turn), v)
        out = F.scaled_dot_product_attention(_turned(q, turn), k, v, attn_mask=seen, enable_gqa=self.grouped)
        x = x + self.attn_out(out.transpose(1, 2).reshape(rows, length, -1))
        m = self.ff_norm(x)
        return x + self.ff_out(F.silu(self.ff_proj(m)) * self.up_proj(m)), (k, v)


class Norm(nn.Module):
    """RMS in float32, multiplied by the weight in the model's dtype."""

    def __init__(self, weight: torch.Tensor, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(weight, requires_grad=False), eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.float()
        return (wide * (wide.pow(2).mean(-1, keepdim=True) + self.eps).rsqrt()).to(x.dtype) * self.weight


class Filter(nn.Module):
    """Learn2PD's: a block's confidences, zeros behind a block that was cut, through linear layers with ReLU between."""

    def __init__(self, weights: Mapping[str, torch.Tensor], tau: float) -> None:
        """`weights`: `filter/0/kernel` [in out], `filter/0/bias` and so on; `tau`: what sigmoid is compared with."""
        super().__init__()
        count = sum(name.startswith("filter/") for name in weights) // 2
        pairs = [(weights[f"filter/{i}/kernel"], weights[f"filter/{i}/bias"]) for i in range(count)]
        self.layers = nn.ModuleList([_linear(*pair) for pair in pairs])
        self.width, self.tau = pairs[0][0].shape[0], tau
        self.requires_grad_(False)

    def forward(self, confidence: torch.Tensor) -> torch.Tensor:
        """Which positions [B w] of a block are accepted."""
        count = confidence.shape[1]
        x = F.pad(confidence.float(), (0, self.width - count))
        for layer in self.layers[:-1]:
            x = layer(x).relu()
        return self.layers[-1](x)[:, :count].sigmoid() > self.tau


def _turned(x: torch.Tensor, turn: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    cos, sin = turn
    wide = x.float()
    first, second = wide.chunk(2, -1)
    return (wide * cos + torch.cat([-second, first], -1) * sin).to(x.dtype)


def _linear(kernel: torch.Tensor, bias: torch.Tensor | None = None) -> nn.Linear:
    """From a kernel [in out]."""
    made = nn.Linear(*kernel.shape, bias=bias is not None, dtype=kernel.dtype)
    made.weight.data = kernel.T.contiguous()
    if bias is not None:
        made.bias.data = bias
    return made
