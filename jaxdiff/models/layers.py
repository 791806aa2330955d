"""What the families share inside a layer: normalisation, rotary positions, projections, the gated MLP.

Modules put their parameters into the scope of the block that holds them (`nn.share_scope`), so that a layer's leaves
have one flat set of names in every family: `q_proj/kernel`, `attn_norm/weight`, `ff_out/kernel`.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdiff.kvcache import LayerAccess, Pair
from jaxdiff.models.attention import attend
from jaxdiff.models.config import Config
from jaxdiff.models.lora import product
from jaxdiff.types import Inputs, Span

Rope = tuple[Float[Array, "B T 1 h"], Float[Array, "B T 1 h"]]  # cos and sin, one column for each rotated pair


class RMSNorm(nn.Module):
    """Float32 statistics, cast back, then multiplied by the weight: the order that all published families have."""

    eps: float

    @nn.compact
    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        weight = self.param("weight", nn.initializers.ones, (x.shape[-1],))
        full = x.astype(jnp.float32)
        full = full * jax.lax.rsqrt(jnp.mean(full * full, axis=-1, keepdims=True) + self.eps)
        return full.astype(x.dtype) * jnp.expand_dims(weight.astype(x.dtype), range(x.ndim - 1))


class Projection(nn.Module):
    """x @ kernel (+ bias), in the dtype of x; `scale` is the variance of the initial kernel, times its fan in.

    `gate`: the tokens at which a gated adapter of the kernel is on.
    """

    width: int
    bias: bool = False
    scale: float = 1.0

    @nn.compact
    def __call__(self, x: Float[Array, "n i"], gate: Bool[Array, " n"] | None = None) -> Float[Array, "n o"]:
        init = nn.initializers.variance_scaling(self.scale, "fan_in", "truncated_normal")
        out = product(x, self.param("kernel", init, (x.shape[-1], self.width)), gate)
        if self.bias:
            out = out + self.param("bias", nn.initializers.zeros, (self.width,)).astype(x.dtype)[None]
        return out


def rope_table(positions: Int[Array, "B T"], rotary_dim: int, theta: float, dtype: jnp.dtype) -> Rope:
    """Cos and sin of `rotary_dim` dimensions, computed in float32 and kept in `dtype`; h = rotary_dim / 2."""
    frequency = theta ** (-jnp.arange(0, rotary_dim, 2, dtype=jnp.float32) / rotary_dim)
    angle = positions[..., None, None].astype(jnp.float32) * frequency[None, None, None]
    return jnp.cos(angle).astype(dtype), jnp.sin(angle).astype(dtype)


def rotate(x: Float[Array, "B T n E"], rope: Rope) -> Float[Array, "B T n E"]:
    """Half-split RoPE on the first 2h dimensions: i is rotated with i + h; the others pass.

    Computed in the table's dtype (LLaDA's is float32, the Qwen-like families' the model's), cast back.
    """
    cos, sin = rope
    half = cos.shape[-1]
    full = x[..., : 2 * half].astype(cos.dtype)
    first, second = full[..., :half], full[..., half:]
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
    return rotated if 2 * half == x.shape[-1] else jnp.concatenate([rotated, x[..., 2 * half :]], axis=-1)


def visible(inputs: Inputs, block: int | None, prefix_lm: bool) -> Bool[Array, "B t S"]:
    """Which columns a token attends to, from absolute positions, and which tokens beside the canvas, behind them; t is
    1 where all tokens attend alike.

    `block` None: every valid column. Else block-causal: the valid columns whose position // block is not greater than
    the token's own (LLaDA2, SDAR). With `prefix_lm` the prompt's positions see each other and nothing else.
    """
    if inputs.instead is not None:
        return inputs.valid[:, None] & inputs.instead
    column = jnp.arange(inputs.valid.shape[1], dtype=jnp.int32)[None, None]
    there, here = column - inputs.origin[:, None, None], inputs.positions[:, :, None]
    mask = inputs.valid[:, None]
    if block is not None:
        mask &= there // block <= here // block
    if prefix_lm and inputs.prompt_length is not None:
        prompt = inputs.prompt_length[:, None, None]
        mask &= (there < prompt) | (here >= prompt)
    mask = mask if inputs.sees is None else mask & inputs.sees
    if inputs.beside is None:
        return mask
    return jnp.concatenate([jnp.broadcast_to(mask, (*inputs.tokens.shape, mask.shape[2])), inputs.beside], axis=2)


class Attention(nn.Module):
    """Self-attention with rotary positions, on [B, T, D] flattened to [B*T, D]; over a KV cache, where there is one.

    On CPU the gradient of a three-dimensional matrix product takes twice as long. Keys are kept after the rotation: a
    column's position never changes, so they are bit for bit what rotating them at each use would give.
    """

    config: Config

    @nn.compact
    def __call__(
        self,
        flat: Float[Array, "BT D"],
        rope: Rope,
        mask: Bool[Array, "B t S"],
        access: LayerAccess | None = None,
        read: Span | None = None,
        decoding: bool = False,
        gate: Bool[Array, "B T"] | None = None,
    ) -> tuple[Float[Array, "Br D"], Pair | None]:
        """The output; and, where there is a KV cache, its keys and values with those of this pass.

        With `read` those tokens alone are queries, over the keys of all. `decoding`: not a pass of training. `gate`: of
        adapters, at the tokens that are fed.
        """
        c, (rows, length) = self.config, rope[0].shape[:2]
        queries, query_rope, query_gate = flat, rope, gated(gate, read)
        if read is not None:
            queries = read.of(flat.reshape(rows, length, -1)).reshape(-1, flat.shape[-1])
            query_rope = (read.of(rope[0]), read.of(rope[1]))
            mask = mask if mask.shape[1] == 1 else read.of(mask)

        def project(
            of: Float[Array, "Br D"], on: Bool[Array, " Br"] | None, name: str, count: int
        ) -> Float[Array, "B r n E"]:
            wide = Projection(count * c.head_dim, bias=c.qkv_bias, name=name)(of, on)
            # In a decode; else XLA for TPUs lets the layout of heads reach the weights, and holds all of them twice.
            if decoding:
                wide = jax.lax.platform_dependent(wide, tpu=jax.lax.optimization_barrier, default=lambda x: x)
            return wide.reshape(rows, -1, count, c.head_dim)

        q, key_gate = project(queries, query_gate, "q_proj", c.n_heads), gated(gate)
        k, v = (project(flat, key_gate, name, c.n_kv_heads) for name in ("k_proj", "v_proj"))
        if c.qk_norm:
            q, k = RMSNorm(c.rms_norm_eps, name="q_norm")(q), RMSNorm(c.rms_norm_eps, name="k_norm")(k)
        q, k = rotate(q, query_rope), rotate(k, rope)
        if access is None:
            k, v, pair = jnp.moveaxis(k, 1, 2), jnp.moveaxis(v, 1, 2), None
        else:
            k, v, pair = access.update(k, v)
        attended = attend(q, k, v, mask).reshape(queries.shape[0], -1)
        return Projection(flat.shape[-1], scale=c.output_scale, name="attn_out")(attended, query_gate), pair


def gated(gate: Bool[Array, "B T"] | None, read: Span | None = None) -> Bool[Array, " Br"] | None:
    """The gate of the tokens that are read (default all), flat as these are."""
    if gate is None:
        return None
    return (gate if read is None else read.of(gate)).reshape(-1)


class SwiGLU(nn.Module):
    """ff_out(silu(ff_proj(x)) * up_proj(x))."""

    width: int
    scale: float = 1.0  # of the initial output kernel

    @nn.compact
    def __call__(self, flat: Float[Array, "n D"], gate: Bool[Array, " n"] | None = None) -> Float[Array, "n D"]:
        opened = jax.nn.silu(Projection(self.width, name="ff_proj")(flat, gate))
        wide = opened * Projection(self.width, name="up_proj")(flat, gate)
        return Projection(flat.shape[-1], scale=self.scale, name="ff_out")(wide, gate)
