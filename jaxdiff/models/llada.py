"""The dense LLaDA family: a bidirectional Llama-like stack without a causal mask or time embedding.

Facts: ML-GSAI/LLaDA `modeling_llada.py` and its `config.json`. RMSNorm takes float32 statistics, casts back and
then multiplies by the weight; RoPE is the half-split kind, computed in float32; the MLP is SwiGLU; `ff_proj` is
the gate. The same code serves the shipped model and LLaDA-8B.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from jaxdiff.models.layers import Attention, SwiGLU
from jaxdiff.models.stack import Group, Stack, Transformer
from jaxdiff.types import InputError

# What this code does whatever config.json says: another value is refused, not ignored.
_REQUIRED = {
    "block_type": "llama",
    "activation_type": "silu",
    "layer_norm_type": "rms",
    "rope": True,
    "alibi": False,
    "weight_tying": False,
    "include_bias": False,
    "scale_logits": False,
    "attention_layer_norm": False,
    "input_emb_norm": False,
}


@dataclasses.dataclass(frozen=True)
class LladaConfig:
    """Shapes, special ids and dtype; `from_dict` also reads the published `config.json`."""

    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    mlp_hidden_size: int
    mask_token_id: int
    eos_token_id: int
    eot_token_id: int | None = None  # a chat turn's end, where the family has one beside `eos`
    rope_theta: float = 500000.0
    rms_norm_eps: float = 1e-5
    include_qkv_bias: bool = False
    max_sequence_length: int = 4096
    dtype: str = "bfloat16"

    def __post_init__(self) -> None:
        if self.d_model % self.n_heads or self.head_dim % 2:
            raise InputError(
                f"d_model: found {self.d_model} with {self.n_heads} heads, expected an even multiple of the heads"
            )
        if self.n_heads % self.n_kv_heads:
            raise InputError(f"n_kv_heads: found {self.n_kv_heads}, expected a divisor of n_heads = {self.n_heads}")
        for name in ("mask_token_id", "eos_token_id"):
            if not 0 <= getattr(self, name) < self.vocab_size:
                raise InputError(
                    f"{name}: found {getattr(self, name)}, expected an id under vocab_size {self.vocab_size}"
                )

    @property
    def head_dim(self) -> int:
        return self.d_model // self.n_heads

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """The ids that end an answer: end-of-text, and the end of a turn where there is one."""
        return (self.eos_token_id,) if self.eot_token_id is None else (self.eos_token_id, self.eot_token_id)

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> LladaConfig:
        """From a config.json. Unknown keys are left alone, a missing one is named.

        Raises InputError for a file that lacks a shape or asks for a feature that this code does not have.
        """
        for key, wanted in _REQUIRED.items():
            if raw.get(key, wanted) != wanted:
                raise InputError(f"config.json {key}: found {raw[key]!r}, expected {wanted!r}")
        known = {f.name: f for f in dataclasses.fields(cls)}
        values = {k: v for k, v in raw.items() if k in known}
        values.setdefault("n_kv_heads", values.get("n_heads"))
        if (values.get("vocab_size"), values.get("eos_token_id")) == (126464, 126081):
            values.setdefault("eot_token_id", 126348)  # the published files name it in `generate.py` alone
        missing = [k for k, f in known.items() if f.default is dataclasses.MISSING and values.get(k) is None]
        if missing:
            raise InputError(f"config.json: missing {', '.join(missing)}; add the key or name another folder")
        return cls(**values)


@dataclasses.dataclass(frozen=True)
class Llada(Transformer):
    """Dense LLaDA: LLaDA-8B, LLaDA-1.5, and the model that ships."""

    config: LladaConfig

    def stack(self) -> Stack:
        c = self.config
        scale = 1.0 / (2 * c.n_layers)
        heads = (c.n_heads, c.n_kv_heads, c.head_dim)
        attention = functools.partial(Attention, *heads, bias=c.include_qkv_bias, scale=scale)
        mlp = functools.partial(SwiGLU, c.mlp_hidden_size, scale=scale)
        return Stack(
            vocab_size=c.vocab_size,
            d_model=c.d_model,
            groups=(Group("layers", c.n_layers, attention, mlp),),
            eps=c.rms_norm_eps,
            dtype=c.dtype,
            turned=c.head_dim,
            theta=c.rope_theta,
            rope_dtype="float32",
        )
