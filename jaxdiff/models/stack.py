"""The one stack that every family is: embedding, groups of scanned blocks, the last norm; and the model around it.

    tokens [B T] -> wte -> groups of blocks, scanned -> ln_f -> features [B r D] -> head [D V]

A family is a config and a composition: which `Attention`, which MLP, how many layers of each. What reads or writes keys
and values belongs here and in `layers.Attention`, once for all of them.
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

from jaxdiff.models.config import Config
from jaxdiff.models.layers import Attention, Kept, RMSNorm, Rope, rope_table, visible
from jaxdiff.types import Memory, Params, Span, Window
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
        seen: Bool[Array, "B t S"],
        window: Window | None = None,
        memory: Kept | None = None,
        layer: Any = None,
        read: Span | None = None,
    ) -> tuple[Float[Array, "B r D"], Kept | None]:
        normed = self.attn_norm(x.reshape(-1, x.shape[-1]))
        attended, memory = self.attend(normed, rope, seen, window, memory, layer, read)
        x = x if read is None else take(x, read.start, read.count)
        flat = x.reshape(-1, x.shape[-1]) + attended
        flat = flat + self.mix(self.ff_norm(flat))
        return flat.reshape(x.shape), memory


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
    prefix_lm: bool = False
    tied: bool = False  # the head is the embedding, transposed

    @nn.compact
    def __call__(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B L"],
        valid: Bool[Array, "B L"],
        prompt: Int[Array, " B"] | None = None,
        window: Window | None = None,
        memory: Memory | None = None,
        read: Span | None = None,
    ) -> tuple[Float[Array, "B r D"], Memory]:
        """Features of the tokens, and each group's keys and values with the window written (see `Transformer.recall`).

        Positions and `valid` are those of the whole canvas. Without a window the tokens are the canvas, and nothing is
        kept. With `read` the last layer's queries and MLP are computed for those tokens alone.
        """
        embedding_init = nn.initializers.normal(1.0 / math.sqrt(self.d_model))
        embedding = self.param("wte", embedding_init, (self.vocab_size, self.d_model))
        if not self.tied:
            head_init = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
            self.param("head", head_init, (self.d_model, self.vocab_size))
        x = full(embedding[tokens], jnp.dtype(self.dtype))
        at = positions if window is None else take(positions, window.start, tokens.shape[1])
        rope = rope_table(at, self.turned, self.theta, jnp.dtype(self.rope_dtype))
        seen = visible(at, positions, valid, self.attention_block, prompt if self.prefix_lm else None)
        kept = {}
        for group in self.groups:
            past, asked = (None if memory is None else memory[group.name]), (read if group is self.groups[-1] else None)
            if past is None and asked is None:
                layers = nn.scan(
                    Block,
                    variable_axes={"params": 0},
                    split_rngs={"params": True},
                    in_axes=(nn.broadcast, nn.broadcast),
                    length=group.depth,
                )
                x, kept[group.name] = layers(group.attention, group.mlp, self.eps, name=group.name)(x, rope, seen)
            else:
                x, kept[group.name] = self._layers(group, x, rope, seen, window, past, asked)
        return RMSNorm(self.eps, name="ln_f")(x), kept

    def _layers(
        self,
        group: Group,
        x: Float[Array, "B T D"],
        rope: Rope,
        seen: Bool[Array, "B t S"],
        window: Window | None,
        memory: Kept | None,
        read: Span | None,
    ) -> tuple[Float[Array, "B r D"], Kept | None]:
        """The group over its memory, and with its last layer apart, which `nn.scan` cannot do.

        The memory is carried and written layer by layer, so that one as large need not be made beside it. Whether XLA
        writes in place hangs on the program's size and on the device (README, "What a decode costs here").
        """
        leaves, block = self.variables["params"][group.name], Block(group.attention, group.mlp, self.eps, parent=None)

        def layer(carry: tuple[Array, Kept | None], index: Any, read: Span | None = None) -> tuple[Any, None]:
            x, memory = carry
            own = jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, index, keepdims=False), leaves)
            return block.apply({"params": own}, x, rope, seen, window, memory, index, read), None

        count = group.depth - (read is not None)
        carry, _ = jax.lax.scan(layer, (x, memory), jnp.arange(count))
        return carry if read is None else layer(carry, count, read)[0]


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
            prefix_lm=c.prefix_lm,
            tied=c.tied,
        )

    def init(self, key: Key[Array, ""]) -> Params:
        """Fresh float32 parameters; a group's leaves are stacked [N, ...]."""
        one = jnp.zeros((1, 1), jnp.int32)
        return self.stack().init(key, one, one, jnp.ones((1, 1), bool))["params"]

    def features(
        self,
        params: Params,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"],
        valid: Bool[Array, "B T"],
        prompt: Int[Array, " B"] | None = None,
        read: Span | None = None,
    ) -> Float[Array, "B r D"]:
        """Hidden states after the last norm, [B r D] in the config's dtype; row i predicts token i.

        Args:
            prompt: how many first positions do not see the others, where the config says `prefix_lm`; default none.
            read: the only tokens whose features are wanted, r = read.count; default all, r = T. The rest of the last
                layer's queries and MLP is not computed.
        """
        return self._apply(params, tokens, positions, valid, prompt, None, None, read)[0]

    def recall(
        self,
        params: Params,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B L"],
        valid: Bool[Array, "B L"],
        window: Window,
        memory: Memory,
        prompt: Int[Array, " B"] | None = None,
        read: Span | None = None,
    ) -> tuple[Float[Array, "B r D"], Memory]:
        """`features` of a window of the canvas, over what is remembered of the rest: the case T = L is the whole.

        Args:
            tokens: those of columns window.start to window.start + T of each row.
            positions, valid: of all columns; `prompt` as in `features`, `read` too, counted from the window's start.
            memory: keys and values of all layers and columns (there may be more of these), as `memory` makes them.

        Returns the features, and the memory with the window's keys and values written over where `window.fresh`. A
        window that is not `kept` may be written or not.
        """
        return self._apply(params, tokens, positions, valid, prompt, window, memory, read)

    def memory(self, rows: int, length: int) -> Memory:
        """Room for the keys and values of `rows` canvases, zeros [N B K L E] in the config's dtype for each group."""

        def room(group: Group) -> Kept:
            heads = group.attention()
            shape = (group.depth, rows, heads.kv_heads, length, heads.head_dim)
            return jnp.zeros(shape, jnp.dtype(self.config.dtype)), jnp.zeros(shape, jnp.dtype(self.config.dtype))

        return {group.name: room(group) for group in self.stack().groups}

    def _apply(self, params: Params, *arguments: Any) -> tuple[Float[Array, "B r D"], Memory]:
        stack = self.stack().clone(vocab_size=params["wte"].shape[0])  # over a mesh it is padded
        out: Any = stack.apply({"params": params}, *arguments)
        return out

    def head(self, params: Params) -> Float[Any, "D V"]:
        """The unembedding matrix, quantised where the params are."""
        return params["head"] if "head" in params else params["wte"].T
