"""The dense LLaDA family: a bidirectional Llama-like stack without a causal mask or time embedding.

Facts: ML-GSAI/LLaDA `modeling_llada.py` and its `config.json`. RMSNorm takes float32 statistics, casts back and
then multiplies by the weight; RoPE is the half-split kind, computed in float32; the MLP is SwiGLU; `ff_proj` is
the gate. The same code serves the shipped model and LLaDA-8B.

    tokens [B T] -> wte -> N x (norm, attention, norm, SwiGLU), scanned -> ln_f -> features [B T D] -> head [D V]
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jaxdiff.models.layers import RMSNorm, attend, rope_table, rotate
from jaxdiff.types import InputError, Params

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


class Block(nn.Module):
    config: LladaConfig

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        rope: tuple[Float[Array, "B T 1 h"], Float[Array, "B T 1 h"]],
        valid: Bool[Array, "B T"],
    ) -> tuple[Float[Array, "B T D"], None]:
        c = self.config
        rows, length, _ = x.shape

        def dense(width: int, name: str, *, bias: bool = False, scale: float = 1.0) -> nn.Dense:
            init = nn.initializers.variance_scaling(scale, "fan_in", "truncated_normal")
            return nn.Dense(width, use_bias=bias, dtype=x.dtype, kernel_init=init, name=name)

        def heads(flat: Float[Array, "BT width"], count: int) -> Float[Array, "B T n E"]:
            return flat.reshape(rows, length, count, c.head_dim)

        # Matrix products run on [B*T, D]: on CPU the gradient of a three-dimensional one takes twice as long.
        flat = x.reshape(rows * length, c.d_model)
        residual_scale = 1.0 / (2 * c.n_layers)
        n = RMSNorm(c.rms_norm_eps, name="attn_norm")(flat)
        q = heads(dense(c.n_heads * c.head_dim, "q_proj", bias=c.include_qkv_bias)(n), c.n_heads)
        k = heads(dense(c.n_kv_heads * c.head_dim, "k_proj", bias=c.include_qkv_bias)(n), c.n_kv_heads)
        v = heads(dense(c.n_kv_heads * c.head_dim, "v_proj", bias=c.include_qkv_bias)(n), c.n_kv_heads)
        attended = attend(rotate(q, *rope), rotate(k, *rope), v, valid)
        flat = flat + dense(c.d_model, "attn_out", scale=residual_scale)(attended.reshape(flat.shape))

        m = RMSNorm(c.rms_norm_eps, name="ff_norm")(flat)
        m = jax.nn.silu(dense(c.mlp_hidden_size, "ff_proj")(m)) * dense(c.mlp_hidden_size, "up_proj")(m)
        flat = flat + dense(c.d_model, "ff_out", scale=residual_scale)(m)
        return flat.reshape(x.shape), None


class Network(nn.Module):
    """The stack. Layers are scanned, so that compile time does not grow with depth."""

    config: LladaConfig

    @nn.compact
    def __call__(
        self, tokens: Int[Array, "B T"], positions: Int[Array, "B T"], valid: Bool[Array, "B T"]
    ) -> Float[Array, "B T D"]:
        c = self.config
        dtype = jnp.dtype(c.dtype)
        embedding = self.param("wte", nn.initializers.normal(1.0 / math.sqrt(c.d_model)), (c.vocab_size, c.d_model))
        self.param("head", nn.initializers.variance_scaling(1.0, "fan_in", "normal"), (c.d_model, c.vocab_size))
        x = embedding[tokens].astype(dtype)
        rope = rope_table(positions, c.head_dim, c.rope_theta)
        layers = nn.scan(
            Block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(nn.broadcast, nn.broadcast),
            length=c.n_layers,
        )
        x, _ = layers(c, name="layers")(x, rope, valid)
        return RMSNorm(c.rms_norm_eps, name="ln_f")(x)


@dataclasses.dataclass(frozen=True)
class Llada:
    """LLaDA as a static definition; implements `jaxdiff.types.Model`."""

    config: LladaConfig

    def init(self, key: Key[Array, ""]) -> Params:
        """Fresh float32 parameters; a layer's leaves are stacked [N, ...]."""
        one = jnp.zeros((1, 1), jnp.int32)
        return Network(self.config).init(key, one, one, jnp.ones((1, 1), bool))["params"]

    def features(
        self, params: Params, tokens: Int[Array, "B T"], positions: Int[Array, "B T"], valid: Bool[Array, "B T"]
    ) -> Float[Array, "B T D"]:
        """Hidden states after the last norm, [B T D] in the config's dtype; row i predicts token i."""
        features: jax.Array = Network(self.config).apply({"params": params}, tokens, positions, valid)  # type: ignore[assignment]
        return features

    def head(self, params: Params) -> Float[Array, "D V"]:
        """The unembedding matrix."""
        return params["head"]
