"""ENAT (arXiv 2411.06959) for text: visible tokens are encoded once and never see a mask; masks are decoded by a few
layers that see both.

    visible tokens -> wte -> E layers -> encoded      each sees what was revealed no later than itself
    masks          -> wte -> D layers -> ln_f -> head  over [encoded; masks], the keys and values of either kind by
                                                      weights of its own

So what is kept of a token stays right whatever is revealed later: a KV cache is exact by construction, and a pass with
one costs new tokens x E + masks x D layers. Facts: LeapLabTHU/ENAT `libs/models.py`, which reads images: class, noise
level and their modulation of norms are left out. There the features of the step before reach the next one through a
residual MLP; here an encoded token's are what the mask over steps lets them be, and nothing is passed on twice.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jaxdiff.kvcache import LayerAccess, Pair
from jaxdiff.models.attention import attend
from jaxdiff.models.layers import Projection, RMSNorm, Rope, SwiGLU, rope_table, rotate
from jaxdiff.models.llada import LladaConfig
from jaxdiff.models.stack import Block, Group, Transformer
from jaxdiff.types import InputError, Inputs, KVCache, Params, Span
from jaxdiff.weights import full
from jaxdiff.windows import take

ENCODER, DECODER = "layers", "decoder"  # the groups of layers, in params and in the KV cache


@dataclasses.dataclass(frozen=True, kw_only=True)
class EnatConfig(LladaConfig):
    """As LLaDA's. `decoder_layers`: how many of the `n_layers`, the last ones, decode masks; the others encode."""

    decoder_layers: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.decoder_layers >= self.n_layers:
            raise InputError(
                f"decoder_layers: found {self.decoder_layers} of n_layers {self.n_layers}, expected fewer: the others "
                "encode what is visible"
            )
        if self.prefix_lm:
            raise InputError(
                "prefix_lm: found true for an ENAT, expected false: in a decode its prompt never sees the answer anyway"
            )


class MaskLayer(nn.Module):
    """A layer of the masks: x + attention(norm(x)) over the encoded tokens and themselves, then x + mlp(norm(x))."""

    config: EnatConfig

    def setup(self) -> None:
        c = self.config
        heads, kv_heads = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
        self.attn_norm, self.ff_norm = RMSNorm(c.rms_norm_eps), RMSNorm(c.rms_norm_eps)
        self.q_proj = Projection(heads, bias=c.qkv_bias)
        self.k_proj, self.v_proj = (Projection(kv_heads, bias=c.qkv_bias) for _ in range(2))
        self.k_encoded, self.v_encoded = (Projection(kv_heads, bias=c.qkv_bias) for _ in range(2))
        self.attn_out = Projection(c.d_model, scale=c.output_scale)
        self.mix = SwiGLU(c.mlp_hidden_size, scale=c.output_scale)
        nn.share_scope(self, self.mix)

    def of_encoded(
        self, encoded: Float[Array, "B T D"], rope: Rope, gate: Bool[Array, " BT"]
    ) -> tuple[Float[Array, "B T K E"], Float[Array, "B T K E"]]:
        """Keys, rotated, and values of encoded tokens."""
        flat = encoded.reshape(-1, encoded.shape[-1])
        k, v = (self._heads(layer(flat, gate), encoded) for layer in (self.k_encoded, self.v_encoded))
        return rotate(k, rope), v

    def __call__(
        self,
        x: Float[Array, "B T D"],
        encoded: Float[Array, "B T D"] | None,
        masked: Bool[Array, "B T"],
        rope: Rope,
        mask: Bool[Array, "B 1 S"],
        access: LayerAccess | None = None,
    ) -> Float[Array, "B T D"]:
        """The layer's output at the tokens that are `masked`; elsewhere it says nothing.

        Args:
            encoded: features of the others, as the encoder gives them; None: `access` has their keys and values.
            mask: the columns that are seen.
        """
        gate = masked.reshape(-1)
        flat = x.reshape(-1, x.shape[-1])
        normed = self.attn_norm(flat)
        q, k, v = (self._heads(layer(normed, gate), x) for layer in (self.q_proj, self.k_proj, self.v_proj))
        q, k = rotate(q, rope), rotate(k, rope)
        if encoded is not None:
            own = masked[..., None, None]
            k, v = (jnp.where(own, a, b) for a, b in zip((k, v), self.of_encoded(encoded, rope, gate), strict=True))
        if access is None:
            k, v = jnp.moveaxis(k, 1, 2), jnp.moveaxis(v, 1, 2)
        else:
            k, v, _ = access.update(k, v)
        flat = flat + self.attn_out(attend(q, k, v, mask).reshape(flat.shape[0], -1), gate)
        return (flat + self.mix(self.ff_norm(flat), gate)).reshape(x.shape)

    def _heads(self, wide: Float[Array, "BT w"], like: Float[Array, "B T D"]) -> Float[Array, "B T n E"]:
        return wide.reshape(*like.shape[:2], -1, self.config.head_dim)


@dataclasses.dataclass(frozen=True)
class Enat(Transformer):
    """A `jaxdiff.protocols.Encodes`. The features of a visible token are zeros: nothing is predicted there."""

    config: EnatConfig

    def groups(self) -> tuple[Group, ...]:
        c = self.config
        mlp = functools.partial(SwiGLU, c.mlp_hidden_size, scale=c.output_scale)
        encoder, decoder = c.n_layers - c.decoder_layers, c.decoder_layers
        return (Group(ENCODER, encoder, mlp), Group(DECODER, decoder, mlp))

    @property
    def encoder_share(self) -> float:
        """As `jaxdiff.protocols.Encodes.encoder_share`: of the weights of the layers, norms and biases left out."""
        c, (encoder, decoder) = self.config, self.groups()
        two = 2 * c.d_model * c.n_kv_heads * c.head_dim  # keys and values
        layer = two + 2 * c.d_model * c.n_heads * c.head_dim + 3 * c.d_model * c.mlp_hidden_size
        met = encoder.depth * layer + decoder.depth * two
        return met / (met + decoder.depth * layer)

    def init(self, key: Key[Array, ""]) -> Params:
        """Fresh float32 parameters; a group's leaves are stacked [N, ...]."""
        c, (encoder, decoder) = self.config, self.groups()
        keys = jax.random.split(key, 4)
        x, one = jnp.zeros((1, 1, c.d_model)), jnp.ones((1, 1), bool)
        rope = rope_table(jnp.zeros((1, 1), jnp.int32), c.rotary_dim, c.rope_theta, jnp.dtype(c.rope_dtype))

        def stacked(key: Key[Array, ""], group: Group, layer: nn.Module, *given: Any) -> Params:
            return jax.vmap(lambda key: layer.init(key, *given)["params"])(jax.random.split(key, group.depth))

        params = {
            "wte": nn.initializers.normal(1.0 / math.sqrt(c.d_model))(keys[0], (c.embedding_rows, c.d_model)),
            ENCODER: stacked(keys[1], encoder, Block(c, encoder.mlp), x, rope, one[:, None]),
            "encoded_norm": {"weight": jnp.ones((c.d_model,))},
            DECODER: stacked(keys[2], decoder, MaskLayer(c), x, x, one, rope, one[:, None]),
            "ln_f": {"weight": jnp.ones((c.d_model,))},
        }
        if not c.tied:
            head = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
            params["head"] = head(keys[3], (c.d_model, c.embedding_rows))
        return params

    def apply(
        self,
        params: Params,
        inputs: Inputs,
        kv: KVCache | None = None,
        at: Int[Array, " B"] | Int[Array, "B T"] | None = None,
        read: Span | None = None,
    ) -> tuple[Float[Array, "B r D"], KVCache | None]:
        """As `jaxdiff.protocols.Model.apply`. Over a KV cache masks alone are decoded, and nothing is written: what is
        visible must have been encoded (`encode`) before.
        """
        fed, layer = _Fed.of(self.config, params, inputs, at), MaskLayer(self.config)
        encoded = None if kv is not None else self._encoded(params, inputs, None, at, fed)[0]
        inputs = dataclasses.replace(inputs, store=False)

        def decode(x: Float[Array, "B T D"], item: Any) -> tuple[Float[Array, "B T D"], None]:
            own, index = item
            access = None if kv is None else LayerAccess.of(kv[DECODER], index, inputs, at)
            given: Any = layer.apply({"params": own}, x, encoded, fed.masked, fed.rope, inputs.valid[:, None], access)
            return given, None

        depth = self.config.decoder_layers
        x, _ = jax.lax.scan(decode, fed.x, (params[DECODER], jnp.arange(depth)))
        x = self._normed(params["ln_f"], x)
        x = jnp.where(fed.masked[..., None], x, jnp.zeros_like(x))
        return x if read is None else read.of(x), kv

    def encode(
        self, params: Params, inputs: Inputs, kv: KVCache, at: Int[Array, " B"] | Int[Array, "B T"] | None
    ) -> KVCache:
        """As `jaxdiff.protocols.Encodes.encode`."""
        fed = _Fed.of(self.config, params, inputs, at)
        encoded, own = self._encoded(params, inputs, kv[ENCODER], at, fed)
        layer, gate = MaskLayer(self.config), fed.masked.reshape(-1)

        def remember(pair: Pair, item: Any) -> tuple[Pair, None]:
            own, index = item
            both: Any = layer.apply({"params": own}, encoded, fed.rope, gate, method=MaskLayer.of_encoded)
            return LayerAccess.of(pair, index, inputs, at).update(*both)[2], None

        depth = self.config.decoder_layers
        theirs, _ = jax.lax.scan(remember, kv[DECODER], (params[DECODER], jnp.arange(depth)))
        return {ENCODER: own, DECODER: theirs}

    def _encoded(
        self, params: Params, inputs: Inputs, pair: Pair | None, at: Any, fed: _Fed
    ) -> tuple[Float[Array, "B T D"], Pair | None]:
        """The features of visible tokens, and their keys and values in the encoder's cache, where there is one."""
        group = self.groups()[0]
        layer = Block(self.config, group.mlp)
        there = fed.revealed[:, None]
        mask = inputs.valid[:, None] & (there >= 0) & (there <= fed.own[..., None])

        def encode(carry: tuple[Array, Pair | None], item: Any) -> tuple[tuple[Array, Pair | None], None]:
            (x, pair), (own, index) = carry, item
            access = None if pair is None else LayerAccess.of(pair, index, inputs, at)
            given: Any = layer.apply({"params": own}, x, fed.rope, mask, access, None, pair is not None, fed.masked)
            return given, None

        (x, pair), _ = jax.lax.scan(encode, (fed.x, pair), (params[ENCODER], jnp.arange(group.depth)))
        return self._normed(params["encoded_norm"], x), pair

    def _normed(self, own: Params, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        normed: Any = RMSNorm(self.config.rms_norm_eps).apply({"params": own}, x)
        return normed


@dataclasses.dataclass(frozen=True)
class _Fed:
    """What the tokens of a pass are: embedded, and when they were revealed (negative: they are masks).

    `revealed`: of all columns; `own`: of the tokens that are fed.
    """

    x: Float[Array, "B T D"]
    rope: Rope
    revealed: Int[Array, "B L"]
    own: Int[Array, "B T"]

    @classmethod
    def of(cls, config: EnatConfig, params: Params, inputs: Inputs, at: Any) -> _Fed:
        c, tokens = config, inputs.tokens
        revealed = jnp.where(tokens == c.mask_token_id, -1, 0) if inputs.revealed is None else inputs.revealed
        own = revealed
        if at is not None:
            own = jnp.take_along_axis(revealed, at, axis=1) if at.ndim == 2 else take(revealed, at, tokens.shape[1])
        x = full(params["wte"][tokens], jnp.dtype(c.dtype))
        # Nobody sees padding, but no weight times NaN is NaN: which token fills it must not matter.
        x = jnp.where((inputs.positions >= 0)[..., None], x, jnp.zeros_like(x))
        rope = rope_table(inputs.positions, c.rotary_dim, c.rope_theta, jnp.dtype(c.rope_dtype))
        return cls(x, rope, revealed, own)

    @property
    def masked(self) -> Bool[Array, "B T"]:
        return self.own < 0
