"""What jaxdiff is compared with: LLaDA's published sampler as it is commonly run, eager PyTorch under a Python loop.

Source: ML-GSAI/LLaDA `generate.py` and `modeling_llada.py`, written anew from their equations. A step runs the whole
canvas, takes the head over all of it and a softmax over the vocabulary in float64, and commits the block's most
confident masks.
"""

from __future__ import annotations

import os
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from jaxdiff.bench.ceilings import best_seconds
from jaxdiff.models import Llada
from jaxdiff.protocols import Model
from jaxdiff.types import InputError, Params
from jaxdiff.weights import plain


class Eager:
    """A dense LLaDA with the same weights, in PyTorch, on the CPU cores that this process may use.

    Raises InputError where PyTorch is not installed, and for another family.
    """

    def __init__(self, model: Model, params: Params) -> None:
        try:
            import torch
        except ImportError as error:
            raise InputError("pytorch: not installed; install torch, or pass --no-pytorch") from error
        if not isinstance(model, Llada):
            raise InputError(f"pytorch: found {type(model).__name__}, expected Llada; pass --no-pytorch")
        self.torch, self.config = torch, model.config
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        dtype = getattr(torch, self.config.dtype)
        self.weights = jax.tree.map(lambda x: torch.from_numpy(np.array(x, np.float32)).to(dtype), plain(params))
        layers = self.weights["layers"]
        self.layers = [jax.tree.map(lambda x, i=i: x[i], layers) for i in range(self.config.n_layers)]
        half = self.config.head_dim // 2
        self.frequency = self.config.rope_theta ** (-torch.arange(half, dtype=torch.float32) / half)

    def decode(self, prompt: Int[np.ndarray, " P"], gen_length: int, block_length: int) -> Int[np.ndarray, " L"]:
        """Standard decoding of one prompt, one token a step: the canvas. [MASK] itself is never predicted."""
        torch, mask = self.torch, self.config.mask_token_id
        with torch.inference_mode():
            canvas = torch.full((1, len(prompt) + gen_length), mask)
            canvas[0, : len(prompt)] = torch.from_numpy(np.asarray(prompt, np.int64))
            for first in range(len(prompt), canvas.shape[1], block_length):
                for _ in range(block_length):
                    logits = self.logits(canvas)
                    logits[..., mask] = -torch.inf
                    candidate = logits.argmax(-1)
                    prob = logits.to(torch.float64).softmax(-1).gather(-1, candidate[..., None])[..., 0]
                    prob[:, :first] = prob[:, first + block_length :] = -torch.inf
                    at = prob.where(canvas == mask, -torch.inf).argmax(-1, keepdim=True)
                    canvas = canvas.scatter(1, at, candidate.gather(1, at))
            return canvas[0].numpy()

    def logits(self, tokens: Any) -> Any:
        """Token ids [B L] -> logits [B L V]."""
        torch, c = self.torch, self.config
        rows, length = tokens.shape
        angle = torch.arange(length, dtype=torch.float32)[:, None] * self.frequency
        cos, sin = (torch.cat([f(angle)] * 2, -1)[None, None] for f in (torch.cos, torch.sin))

        def norm(x: Any, weight: Any) -> Any:
            full = x.float()
            return (full * (full.pow(2).mean(-1, keepdim=True) + c.rms_norm_eps).rsqrt()).to(x.dtype) * weight

        def turn(x: Any) -> Any:
            full = x.float()
            first, second = full.chunk(2, -1)
            return (full * cos + torch.cat([-second, first], -1) * sin).to(x.dtype)

        def dense(x: Any, leaf: dict[str, Any]) -> Any:
            return x @ leaf["kernel"] + leaf["bias"] if "bias" in leaf else x @ leaf["kernel"]

        x = self.weights["wte"][tokens]
        for layer in self.layers:
            n = norm(x, layer["attn_norm"]["weight"])
            q, k, v = (
                dense(n, layer[name]).view(rows, length, -1, c.head_dim).transpose(1, 2)
                for name in ("q_proj", "k_proj", "v_proj")
            )
            seen = torch.nn.functional.scaled_dot_product_attention(turn(q), turn(k), v, enable_gqa=True)
            x = x + dense(seen.transpose(1, 2).reshape(rows, length, -1), layer["attn_out"])
            m = norm(x, layer["ff_norm"]["weight"])
            gate = torch.nn.functional.silu(dense(m, layer["ff_proj"]))
            x = x + dense(gate * dense(m, layer["up_proj"]), layer["ff_out"])
        return norm(x, self.weights["ln_f"]["weight"]) @ self.weights["head"]

    def matmul_flops(self, size: int) -> float:
        """FLOP/s of one square product of this size in the model's dtype."""
        a = self.torch.ones(size, size, dtype=getattr(self.torch, self.config.dtype))
        return 2 * size**3 / best_seconds(lambda: a @ a)
