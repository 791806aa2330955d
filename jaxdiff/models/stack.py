"""The one stack that every family is: embedding, groups of scanned blocks, the last norm; and the model around it.

    tokens [B T] -> wte -> groups of blocks, scanned -> ln_f -> features [B T D] -> head [D V]

A family is a config and a composition: which `Attention`, which MLP, how many layers of each. What reads or writes keys
and values belongs here and in `layers.Attention`, once for all of them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jaxdiff.models.config import Config
from jaxdiff.models.layers import Attention, RMSNorm, Rope, rope_table, visible
from jaxdiff.types import Params


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); carries x through `nn.scan`."""

    attention: Callable[[], Attention]
    mlp: Callable[[], nn.Module]
    eps: float

    def setup(self) -> None:
        self.attn_norm, self.ff_norm = RMSNorm(self.eps), RMSNorm(self.eps)
        self.attend, self.mix = self.attention(), self.mlp()
        nn.share_scope(self, self.attend)
        nn.share_scope(self, self.mix)

    def __call__(
        self, x: Float[Array, "B T D"], rope: Rope, seen: Bool[Array, "B t S"]
    ) -> tuple[Float[Array, "B T D"], None]:
        flat = x.reshape(-1, x.shape[-1])
        flat = flat + self.attend(self.attn_norm(flat), rope, seen)
        flat = flat + self.mix(self.ff_norm(flat))
        return flat.reshape(x.shape), None


@dataclasses.dataclass(frozen=True)
class Group:
    """Layers of one kind: their leaves are stacked [N, ...] under `name`."""

    name: str
    depth: int
    attention: Callable[[], Attention]
    mlp: Callable[[], nn.Module]


class Stack(nn.Module):
    """Layers are scanned, so that compile time does not grow with depth."""

    vocab_size: int
    d_model: int
    groups: tuple[Group, ...]
    eps: float
    dtype: str
    turned: int  # dimensions of a head that rotary positions turn
    theta: float
    rope_dtype: str
    attention_block: int | None = None
    tied: bool = False  # the head is the embedding, transposed

    @nn.compact
    def __call__(
        self, tokens: Int[Array, "B T"], positions: Int[Array, "B T"], valid: Bool[Array, "B T"]
    ) -> Float[Array, "B T D"]:
        embedding_init = nn.initializers.normal(1.0 / math.sqrt(self.d_model))
        embedding = self.param("wte", embedding_init, (self.vocab_size, self.d_model))
        if not self.tied:
            head_init = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
            self.param("head", head_init, (self.d_model, self.vocab_size))
        x = embedding[tokens].astype(jnp.dtype(self.dtype))
        rope = rope_table(positions, self.turned, self.theta, jnp.dtype(self.rope_dtype))
        seen = visible(positions, positions, valid, self.attention_block)
        for group in self.groups:
            layers = nn.scan(
                Block,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=(nn.broadcast, nn.broadcast),
                length=group.depth,
            )
            x, _ = layers(group.attention, group.mlp, self.eps, name=group.name)(x, rope, seen)
        return RMSNorm(self.eps, name="ln_f")(x)


@dataclasses.dataclass(frozen=True)
class Transformer:
    """A family as a static definition; implements `jaxdiff.types.Model`. A subclass says its `groups`."""

    config: Config

    shifted = tempered = False

    @property
    def attention_block(self) -> int | None:
        return None

    @property
    def rope_dtype(self) -> str:
        """Of the cosines and sines of rotary positions."""
        return self.config.dtype

    def groups(self) -> tuple[Group, ...]:
        """The layers, first to last."""
        raise NotImplementedError

    def stack(self) -> Stack:
        """The whole network."""
        c = self.config
        return Stack(
            vocab_size=c.vocab_size,
            d_model=c.d_model,
            groups=self.groups(),
            eps=c.rms_norm_eps,
            dtype=c.dtype,
            turned=c.turned,
            theta=c.rope_theta,
            rope_dtype=self.rope_dtype,
            attention_block=self.attention_block,
            tied=c.tied,
        )

    def init(self, key: Key[Array, ""]) -> Params:
        """Fresh float32 parameters; a group's leaves are stacked [N, ...]."""
        one = jnp.zeros((1, 1), jnp.int32)
        return self.stack().init(key, one, one, jnp.ones((1, 1), bool))["params"]

    def features(
        self, params: Params, tokens: Int[Array, "B T"], positions: Int[Array, "B T"], valid: Bool[Array, "B T"]
    ) -> Float[Array, "B T D"]:
        """Hidden states after the last norm, [B T D] in the config's dtype; row i predicts token i."""
        stack = self.stack().clone(vocab_size=params["wte"].shape[0])  # over a mesh it is padded
        features: jax.Array = stack.apply({"params": params}, tokens, positions, valid)  # type: ignore[assignment]
        return features

    def head(self, params: Params) -> Float[Array, "D V"]:
        """The unembedding matrix."""
        return params["head"] if "head" in params else params["wte"].T
