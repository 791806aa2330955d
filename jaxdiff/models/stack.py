"""The one stack that every family is: embedding, groups of scanned blocks, the last norm; and the model around it.

    tokens [B T] -> wte -> groups of blocks, scanned -> ln_f -> features [B r D] -> head [D V]

A family is a config and a composition: which `Attention`, which MLP, how many layers of each.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jaxdiff import kvcache
from jaxdiff.kvcache import LayerAccess, Pair
from jaxdiff.models.config import Config
from jaxdiff.models.layers import Attention, RMSNorm, Rope, rope_table, visible
from jaxdiff.types import Inputs, KVCache, Params, Span
from jaxdiff.weights import full
from jaxdiff.windows import take


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); carries x through a scan."""

    attention: Callable[[], Attention]
    mlp: Callable[[], nn.Module]
    eps: float

    def setup(self) -> None:
        self.attn_norm, self.ff_norm = RMSNorm(self.eps), RMSNorm(self.eps)
        self.attend, self.mix = self.attention(), self.mlp()
        nn.share_scope(self, self.attend)
        nn.share_scope(self, self.mix)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        rope: Rope,
        mask: Bool[Array, "B t S"],
        access: LayerAccess | None = None,
        read: Span | None = None,
        decoding: bool = False,
    ) -> tuple[Float[Array, "B r D"], Pair | None]:
        """The layer's output for the tokens that are read (default all), and its group's keys and values."""
        normed = self.attn_norm(x.reshape(-1, x.shape[-1]))
        attended, pair = self.attend(normed, rope, mask, access, read, decoding)
        x = x if read is None else take(x, read.start, read.count)
        flat = x.reshape(-1, x.shape[-1]) + attended
        flat = flat + self.mix(self.ff_norm(flat))
        return flat.reshape(x.shape), pair


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
    rotary_dim: int  # dimensions of a head that rotary positions rotate
    theta: float
    rope_dtype: str
    attention_block: int | None = None
    prefix_lm: bool = False
    tied: bool = False  # the head is the embedding, transposed

    @nn.compact
    def __call__(
        self,
        inputs: Inputs,
        kv: KVCache | None = None,
        at: Int[Array, " B"] | Int[Array, "B T"] | None = None,
        read: Span | None = None,
    ) -> tuple[Float[Array, "B r D"], KVCache | None]:
        """As `jaxdiff.types.Model.apply`, before a family's shift is undone."""
        embedding_init = nn.initializers.normal(1.0 / math.sqrt(self.d_model))
        embedding = self.param("wte", embedding_init, (self.vocab_size, self.d_model))
        if not self.tied:
            head_init = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
            self.param("head", head_init, (self.d_model, self.vocab_size))
        x = full(embedding[inputs.tokens], jnp.dtype(self.dtype))
        rope = rope_table(inputs.positions, self.rotary_dim, self.theta, jnp.dtype(self.rope_dtype))
        mask = visible(inputs, self.attention_block, self.prefix_lm)
        kept = {}
        for group in self.groups:
            asked = read if group is self.groups[-1] else None
            if kv is None and asked is None:
                layers = nn.scan(
                    Block,
                    variable_axes={"params": 0},
                    split_rngs={"params": True},
                    in_axes=(nn.broadcast, nn.broadcast),
                    length=group.depth,
                )
                x, _ = layers(group.attention, group.mlp, self.eps, name=group.name)(x, rope, mask)
                continue
            leaves = self.variables["params"][group.name]
            block = Block(group.attention, group.mlp, self.eps, parent=None)

            def layer(
                carry: tuple[Array, Pair | None],
                index: Any,
                read: Span | None = None,
                block: Any = block,
                of: Any = leaves,
            ) -> tuple[tuple[Array, Pair | None], None]:
                x, pair = carry
                own = jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, index, keepdims=False), of)
                access = None if pair is None else LayerAccess.of(pair, jnp.asarray(index), inputs, at)
                return block.apply({"params": own}, x, rope, mask, access, read, True), None

            # The cache is carried and written layer by layer, so that one as large need not be made beside it, and the
            # last layer stands apart where it reads less, which `nn.scan` cannot do.
            count = group.depth - (asked is not None)
            carry, _ = jax.lax.scan(layer, (x, None if kv is None else kv[group.name]), jnp.arange(count))
            x, pair = carry if asked is None else layer(carry, count, asked)[0]
            kept[group.name] = pair
        return RMSNorm(self.eps, name="ln_f")(x), None if kv is None else kept


@dataclasses.dataclass(frozen=True)
class Transformer:
    """A family as a static definition; implements `jaxdiff.types.Model`. A subclass says its `groups`."""

    config: Config

    shifted = tempered = False
    copies = 1

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
            rotary_dim=c.rotary_dim,
            theta=c.rope_theta,
            rope_dtype=self.rope_dtype,
            attention_block=self.attention_block,
            prefix_lm=c.prefix_lm,
            tied=c.tied,
        )

    def init(self, key: Key[Array, ""]) -> Params:
        """Fresh float32 parameters; a group's leaves are stacked [N, ...]."""
        return self.stack().init(key, Inputs.whole(jnp.zeros((1, 1), jnp.int32)))["params"]

    def apply(
        self,
        params: Params,
        inputs: Inputs,
        kv: KVCache | None = None,
        at: Int[Array, " B"] | Int[Array, "B T"] | None = None,
        read: Span | None = None,
    ) -> tuple[Float[Array, "B r D"], KVCache | None]:
        """As `jaxdiff.types.Model.apply`; features are in the config's dtype.

        With `read` the rest of the last layer's queries and MLP is not computed.
        """
        stack = self.stack().clone(vocab_size=params["wte"].shape[0])  # over a mesh it is padded
        out: Any = stack.apply({"params": params}, inputs, kv, at, read)
        return out

    def empty_kv(self, rows: int, columns: int) -> KVCache:
        """Zeros in the config's dtype, [N B K M E] for each group of layers."""

        def room(group: Group) -> Pair:
            heads = group.attention()
            return kvcache.empty(group.depth, rows, heads.kv_heads, columns, heads.head_dim, self.config.dtype)

        return {group.name: room(group) for group in self.stack().groups}

    def head(self, params: Params) -> Float[Any, "D V"]:
        """The unembedding matrix, quantised where the params are."""
        return params["head"] if "head" in params else params["wte"].T
