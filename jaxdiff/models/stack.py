"""The one stack that every family is: embedding, groups of scanned blocks, the last norm; and the model around it.

    tokens [B T] -> wte -> groups of blocks, scanned -> ln_f -> features [B r D] -> head [D V]

A family is a config and a composition: which MLP, and how many layers of each.
"""

from __future__ import annotations

import dataclasses
import functools
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
from jaxdiff.models.layers import Attention, RMSNorm, Rope, SwiGLU, gated, rope_table, visible
from jaxdiff.types import Inputs, KVCache, Params, Span
from jaxdiff.weights import full


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); carries x through a scan."""

    config: Config
    mlp: Callable[[], nn.Module]

    def setup(self) -> None:
        self.attn_norm, self.ff_norm = RMSNorm(self.config.rms_norm_eps), RMSNorm(self.config.rms_norm_eps)
        self.attend, self.mix = Attention(self.config), self.mlp()
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
        gate: Bool[Array, "B T"] | None = None,
    ) -> tuple[Float[Array, "B r D"], Pair | None]:
        """The layer's output for the tokens that are read (default all), and its group's keys and values.

        `gate`: the tokens at which gated adapters are on.
        """
        normed = self.attn_norm(x.reshape(-1, x.shape[-1]))
        attended, pair = self.attend(normed, rope, mask, access, read, decoding, gate)
        x = x if read is None else read.of(x)
        flat = x.reshape(-1, x.shape[-1]) + attended
        flat = flat + self.mix(self.ff_norm(flat), gated(gate, read))
        return flat.reshape(x.shape), pair


@dataclasses.dataclass(frozen=True)
class Group:
    """Layers of one kind: their leaves are stacked [N, ...] under `name`."""

    name: str
    depth: int
    mlp: Callable[[], nn.Module]


class Stack(nn.Module):
    """Layers are scanned, so that compile time does not grow with depth."""

    config: Config
    groups: tuple[Group, ...]
    rows: int  # of the embedding: the vocabulary, what a file holds past it, and what a mesh pads

    @nn.compact
    def __call__(
        self,
        inputs: Inputs,
        kv: KVCache | None = None,
        at: Int[Array, " B"] | Int[Array, "B T"] | None = None,
        read: Span | None = None,
    ) -> tuple[Float[Array, "B r D"], KVCache | None]:
        """As `jaxdiff.protocols.Model.apply`, before a family's shift is undone."""
        c = self.config
        embedding = self.param("wte", nn.initializers.normal(1.0 / math.sqrt(c.d_model)), (self.rows, c.d_model))
        if not c.tied:
            head_init = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
            self.param("head", head_init, (c.d_model, self.rows))
        x = full(embedding[inputs.tokens], jnp.dtype(c.dtype))
        # Nobody sees padding, but no weight times NaN is NaN: which token fills it must not matter.
        x = jnp.where((inputs.positions >= 0)[..., None], x, jnp.zeros_like(x))
        rope = rope_table(inputs.positions, c.rotary_dim, c.rope_theta, jnp.dtype(c.rope_dtype))
        mask = visible(inputs, c.attention_block, c.prefix_lm)
        gate = inputs.tokens == c.mask_token_id
        kept = {}
        for group in self.groups:
            asked = read if group is self.groups[-1] else None
            if kv is None and asked is None:
                layers = nn.scan(
                    Block,
                    variable_axes={"params": 0},
                    split_rngs={"params": True},
                    in_axes=nn.broadcast,
                    length=group.depth,
                )
                x, _ = layers(c, group.mlp, name=group.name)(x, rope, mask, None, None, False, gate)
                continue
            leaves = self.variables["params"][group.name]
            block = Block(c, group.mlp, parent=None)

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
                return block.apply({"params": own}, x, rope, mask, access, read, True, gate), None

            # The cache is carried and written layer by layer, so that one as large need not be made beside it, and the
            # last layer stands apart where it reads less, which `nn.scan` cannot do.
            count = group.depth - (asked is not None)
            carry, _ = jax.lax.scan(layer, (x, None if kv is None else kv[group.name]), jnp.arange(count))
            x, pair = carry if asked is None else layer(carry, count, asked)[0]
            kept[group.name] = pair
        return RMSNorm(c.rms_norm_eps, name="ln_f")(x), None if kv is None else kept


@dataclasses.dataclass(frozen=True)
class Transformer:
    """A family as a static definition, a `jaxdiff.protocols.Model`. One that is not dense says its `groups`."""

    config: Config

    shifted = tempered = False
    copies = 1

    @property
    def attention_block(self) -> int | None:
        return self.config.attention_block

    def groups(self) -> tuple[Group, ...]:
        """The layers, first to last: here all alike and without experts."""
        mlp = functools.partial(SwiGLU, self.config.mlp_hidden_size, scale=self.config.output_scale)
        return (Group("layers", self.config.n_layers, mlp),)

    def init(self, key: Key[Array, ""]) -> Params:
        """Fresh float32 parameters; a group's leaves are stacked [N, ...]."""
        whole = Stack(self.config, self.groups(), self.config.embedding_rows)
        return whole.init(key, Inputs.whole(jnp.zeros((1, 1), jnp.int32)))["params"]

    def apply(
        self,
        params: Params,
        inputs: Inputs,
        kv: KVCache | None = None,
        at: Int[Array, " B"] | Int[Array, "B T"] | None = None,
        read: Span | None = None,
    ) -> tuple[Float[Array, "B r D"], KVCache | None]:
        """As `jaxdiff.protocols.Model.apply`; features are in the config's dtype.

        With `read` the rest of the last layer's queries and MLP is not computed.
        """
        out: Any = Stack(self.config, self.groups(), params["wte"].shape[0]).apply(
            {"params": params}, inputs, kv, at, read
        )
        return out

    def empty_kv(self, rows: int, columns: int) -> KVCache:
        """Zeros in the config's dtype, [N B K M E] for each group of layers."""
        c = self.config
        shape = (rows, c.n_kv_heads, columns, c.head_dim)
        return {group.name: kvcache.empty(group.depth, *shape, c.dtype) for group in self.groups()}

    def embed(self, params: Params, tokens: Int[Array, "B C"]) -> Float[Array, "B C D"]:
        """As `jaxdiff.protocols.Model.embed`."""
        return full(params["wte"][tokens], jnp.dtype(self.config.dtype))

    def head(self, params: Params) -> Float[Any, "D V"]:
        """The unembedding matrix, quantised where the params are."""
        return params["head"] if "head" in params else params["wte"].T
