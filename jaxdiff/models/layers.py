"""What the families share inside a layer: normalisation, rotary positions, attention, the gated MLP.

Modules put their parameters into the scope of the block that holds them (`nn.share_scope`), so that a layer's leaves
have one flat set of names in every family: `q_proj/kernel`, `attn_norm/weight`, `ff_out/kernel`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdiff.parallel import platform, weights_are_spread
from jaxdiff.types import Span, Window
from jaxdiff.weights import full
from jaxdiff.windows import put, take

# Attention logits that are held at once, in elements. Rows whose logits leave a CPU's cache take two to four times as
# long as one after the other; an accelerator wants many at once, but those of 8B models are 52 million each at 1,280.
ROOM, ELSEWHERE = {"cpu": 2**20}, 2**26  # by platform; 2**26 are 256 MB; a head alone may take more
QUERIES = 2048  # of a head that are attended for at once
UNSEEN = -1e30  # added to the logits of a key that is not seen
# Each row's window [K T E] of a memory [N B K M E], addressed by layer, row and first column; nothing is transposed.
READS = jax.lax.GatherDimensionNumbers(offset_dims=(1, 2, 3), collapsed_slice_dims=(0, 1), start_index_map=(0, 1, 3))
WRITES = jax.lax.ScatterDimensionNumbers(
    update_window_dims=(1, 2, 3), inserted_window_dims=(0, 1), scatter_dims_to_operand_dims=(0, 1, 3)
)
IN_BOUNDS: dict[str, Any] = {"indices_are_sorted": True, "unique_indices": True, "mode": "promise_in_bounds"}
Rope = tuple[Float[Array, "B T 1 h"], Float[Array, "B T 1 h"]]  # cos and sin, one column for each turned pair
Kept = tuple[Float[Array, "N B K M E"], Float[Array, "N B K M E"]]  # keys and values, heads before positions


class RMSNorm(nn.Module):
    """Float32 statistics, cast back, then multiplied by the weight: the order that all published families have."""

    eps: float

    @nn.compact
    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        weight = self.param("weight", nn.initializers.ones, (x.shape[-1],))
        full = x.astype(jnp.float32)
        full = full * jax.lax.rsqrt(jnp.mean(full * full, axis=-1, keepdims=True) + self.eps)
        return full.astype(x.dtype) * jnp.expand_dims(weight.astype(x.dtype), range(x.ndim - 1))


class Dense(nn.Module):
    """x @ kernel (+ bias), in the dtype of x; `scale` is the variance of the initial kernel, times its fan in."""

    width: int
    bias: bool = False
    scale: float = 1.0

    @nn.compact
    def __call__(self, x: Float[Array, "n i"]) -> Float[Array, "n o"]:
        init = nn.initializers.variance_scaling(self.scale, "fan_in", "truncated_normal")
        out = x @ full(self.param("kernel", init, (x.shape[-1], self.width)), x.dtype)
        if self.bias:
            out = out + self.param("bias", nn.initializers.zeros, (self.width,)).astype(x.dtype)[None]
        return out


def rope_table(positions: Int[Array, "B T"], turned: int, theta: float, dtype: jnp.dtype) -> Rope:
    """Cos and sin of `turned` dimensions, computed in float32 and kept in `dtype`; h = turned / 2."""
    frequency = theta ** (-jnp.arange(0, turned, 2, dtype=jnp.float32) / turned)
    angle = positions[..., None, None].astype(jnp.float32) * frequency[None, None, None]
    return jnp.cos(angle).astype(dtype), jnp.sin(angle).astype(dtype)


def rotate(x: Float[Array, "B T n E"], rope: Rope) -> Float[Array, "B T n E"]:
    """Half-split RoPE on the first 2h dimensions: i turns with i + h; the others pass.

    Computed in the table's dtype (LLaDA's is float32, the Qwen-like families' the model's), cast back.
    """
    cos, sin = rope
    half = cos.shape[-1]
    full = x[..., : 2 * half].astype(cos.dtype)
    first, second = full[..., :half], full[..., half:]
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
    return turned if 2 * half == x.shape[-1] else jnp.concatenate([turned, x[..., 2 * half :]], axis=-1)


def visible(
    queries: Int[Array, "B T"],
    keys: Int[Array, "B S"],
    valid: Bool[Array, "B S"],
    block: int | None,
    prompt: Int[Array, " B"] | None = None,
) -> Bool[Array, "B t S"]:
    """Which keys a query attends to, from absolute positions; t is 1 where all queries attend alike.

    `block` None: every valid key. Else block-causal: the valid keys whose position // block is not greater than the
    query's own (LLaDA2, SDAR). With `prompt`, that many first positions see each other and nothing else.
    """
    seen = valid[:, None]
    if block is not None:
        seen &= keys[:, None] // block <= queries[:, :, None] // block
    if prompt is not None:
        prompt = prompt[:, None, None]
        seen &= (keys[:, None] < prompt) | (queries[:, :, None] >= prompt)
    return seen


def remember(
    new: Float[Array, "B T K E"], memory: Float[Array, "N B K M E"], layer: Any, window: Window, columns: int
) -> tuple[Float[Array, "B K L E"], Float[Array, "N B K M E"]]:
    """What the layer knows of the first columns once the window's fresh entries are written over, and the memory.

    Written first and then read: in this order XLA writes in place, and needs no second memory to read from.
    """
    new = jnp.moveaxis(new, 1, 2)
    if new.shape[2] == columns:  # a window that is the whole begins at 0
        new = jnp.where(window.fresh[:, None, :, None], new, _layer_of(memory, layer, columns))
        memory = jax.lax.dynamic_update_slice(memory, new[None], (layer, 0, 0, 0, 0))
        return _layer_of(memory, layer, columns), memory
    # A TPU's scatter wants another layout of the memory, and copies all of it.
    own, memory = jax.lax.platform_dependent(
        new, memory, jnp.asarray(layer), window, tpu=remember_by_layer, default=remember_by_window
    )
    return own[:, :, :columns], memory


def remember_by_window(
    new: Float[Array, "B K T E"], memory: Float[Array, "N B K M E"], layer: Int[Array, ""], window: Window
) -> tuple[Float[Array, "B K M E"], Float[Array, "N B K M E"]]:
    """Each row's window is written into the memory, and the layer read."""
    rows = jnp.arange(new.shape[0], dtype=jnp.int32)
    at = jnp.stack([jnp.full_like(rows, layer), rows, window.start], axis=1)
    old = jax.lax.gather(memory, at, READS, (1, 1, *new.shape[1:]), **IN_BOUNDS)
    new = jnp.where(window.fresh[:, None, :, None], new, old)
    memory = jax.lax.scatter(memory, at, new, WRITES, **IN_BOUNDS)
    return _layer_of(memory, layer, memory.shape[3]), memory


def remember_by_layer(
    new: Float[Array, "B K T E"], memory: Float[Array, "N B K M E"], layer: Int[Array, ""], window: Window
) -> tuple[Float[Array, "B K M E"], Float[Array, "N B K M E"]]:
    """The layer is read, its windows written, and it goes back as a whole where the window is kept."""
    own = _layer_of(memory, layer, memory.shape[3])
    old = take(own, window.start, new.shape[2], axis=2)
    own = put(own, jnp.where(window.fresh[:, None, :, None], new, old), window.start, axis=2)
    if not window.kept:
        return own, memory
    memory = jax.lax.dynamic_update_slice(memory, own[None], (layer, 0, 0, 0, 0))
    return _layer_of(memory, layer, memory.shape[3]), memory


def _layer_of(memory: Float[Array, "N B K M E"], layer: Any, columns: int) -> Float[Array, "B K L E"]:
    return jax.lax.dynamic_index_in_dim(memory, layer, keepdims=False)[:, :, :columns]


def attend(
    q: Float[Array, "B T H E"], k: Float[Array, "B K S E"], v: Float[Array, "B K S E"], seen: Bool[Array, "B t S"]
) -> Float[Array, "B T H E"]:
    """Attention over the seen keys, grouped queries allowed (H a multiple of K); float32 softmax.

    Heads stand in front of positions: in that layout both products are plain batched ones, which XLA's CPU backend
    runs about twice as fast as `jax.nn.dot_product_attention`. The logits are the largest array there is, so no more
    rows, and of a row no more heads, go together than ROOM has space for, and of a head no more than QUERIES queries.
    """
    rows, length, heads, size = q.shape
    groups = k.shape[1]
    q = jnp.moveaxis(q.reshape(rows, length, groups, heads // groups, size), 1, 3)  # B K R T E
    room = ROOM.get(platform(), ELSEWHERE)
    each = heads // groups * length * k.shape[2]

    def row(
        q: Float[Array, "K R T E"], k: Float[Array, "K S E"], v: Float[Array, "K S E"], seen: Bool[Array, "t S"]
    ) -> Float[Array, "K R T E"]:
        # Where heads lie over devices a loop over them would gather them all on each.
        count = groups if weights_are_spread() else room // each
        return _together(lambda q, k, v: _attend_head(q, k, v, seen), (q, k, v), count)

    out = _together(row, (q, k, v, seen), room // (each * groups))
    return jnp.moveaxis(out, 3, 1).reshape(rows, length, heads, size)


def _together(each: Callable[..., Array], arrays: tuple[Array, ...], count: int) -> Array:
    """`each` over the first axis, at most so many at a time, in pieces as even as may be."""
    length = arrays[0].shape[0]
    pieces = -(-length // max(1, count))
    return jax.lax.map(lambda one: each(*one), arrays, batch_size=-(-length // pieces))


def _attend_head(
    q: Float[Array, "R T E"], k: Float[Array, "S E"], v: Float[Array, "S E"], seen: Bool[Array, "t S"]
) -> Float[Array, "R T E"]:
    """The queries of one head's keys; more than QUERIES in equal pieces, the last filled up with zeros."""

    def piece(q: Float[Array, "R c E"], seen: Bool[Array, "u S"]) -> Float[Array, "R c E"]:
        # An added bias and a division of what comes out: XLA's CPU backend goes fewer times over the logits than for a
        # `where` and a softmax, two thirds of the time at 1,120 positions.
        logits = jnp.matmul(q * (size**-0.5), k.T, preferred_element_type=jnp.float32)
        logits = logits + jnp.where(seen, 0.0, UNSEEN)[None]
        weights = jnp.exp(logits - jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True)))
        mixed = jnp.matmul(weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
        return (mixed / jnp.sum(weights, axis=-1, keepdims=True)).astype(v.dtype)

    def split(x: Array, axis: int) -> Array:
        wide = jnp.pad(x, [(0, count * each - length if i == axis else 0) for i in range(x.ndim)])
        return jnp.moveaxis(wide.reshape(*x.shape[:axis], count, each, *x.shape[axis + 1 :]), axis, 0)

    share, length, size = q.shape
    count = -(-length // QUERIES)
    each = -(-length // count)
    if count == 1:
        return piece(q, seen)
    if seen.shape[0] == 1:
        out = jax.lax.map(lambda part: piece(part, seen), split(q, 1))
    else:
        out = jax.lax.map(lambda parts: piece(*parts), (split(q, 1), split(seen, 0)))
    return jnp.moveaxis(out, 0, 1).reshape(share, count * each, size)[:, :length]


class Attention(nn.Module):
    """Self-attention with rotary positions, on [B, T, D] flattened to [B*T, D]; over a memory, where there is one.

    On CPU the gradient of a three-dimensional matrix product takes twice as long. Keys are kept after the rotation: a
    column's position never changes, so they are bit for bit what rotating them at each use would give.
    """

    heads: int
    kv_heads: int
    head_dim: int
    bias: bool = False  # of q, k and v
    norm_eps: float | None = None  # RMS norms over each head of q and k, before the rotation
    scale: float = 1.0  # of the initial output kernel

    @nn.compact
    def __call__(
        self,
        flat: Float[Array, "BT D"],
        rope: Rope,
        seen: Bool[Array, "B t S"],
        window: Window | None = None,
        memory: Kept | None = None,
        layer: Any = None,
        read: Span | None = None,
    ) -> tuple[Float[Array, "Br D"], Kept | None]:
        """The output, and where there is a memory of all layers, of which this is one, that with the window written.

        With `read` those tokens alone ask, of the keys of all.
        """
        rows, length = rope[0].shape[:2]
        asking, turned = flat, rope
        if read is not None:
            asking = take(flat.reshape(rows, length, -1), read.start, read.count).reshape(-1, flat.shape[-1])
            turned = (take(rope[0], read.start, read.count), take(rope[1], read.start, read.count))
            seen = seen if seen.shape[1] == 1 else take(seen, read.start, read.count)

        def project(of: Float[Array, "Br D"], name: str, count: int) -> Float[Array, "B r n E"]:
            wide = Dense(count * self.head_dim, bias=self.bias, name=name)(of)
            # In a decode; else XLA for TPUs lets the layout of heads reach the weights, and holds all of them twice.
            if layer is not None:
                wide = jax.lax.platform_dependent(wide, tpu=jax.lax.optimization_barrier, default=lambda x: x)
            return wide.reshape(rows, -1, count, self.head_dim)

        q, k = project(asking, "q_proj", self.heads), project(flat, "k_proj", self.kv_heads)
        v = project(flat, "v_proj", self.kv_heads)
        if self.norm_eps is not None:
            q, k = RMSNorm(self.norm_eps, name="q_norm")(q), RMSNorm(self.norm_eps, name="k_norm")(k)
        q, k = rotate(q, turned), rotate(k, rope)
        if window is None or memory is None:
            k, v = jnp.moveaxis(k, 1, 2), jnp.moveaxis(v, 1, 2)
        else:
            columns = seen.shape[2]
            (k, keys), (v, values) = (
                remember(new, old, layer, window, columns) for new, old in zip((k, v), memory, strict=True)
            )
            memory = (keys, values)
        attended = attend(q, k, v, seen).reshape(asking.shape[0], -1)
        return Dense(flat.shape[-1], scale=self.scale, name="attn_out")(attended), memory


class SwiGLU(nn.Module):
    """ff_out(silu(ff_proj(x)) * up_proj(x))."""

    width: int
    scale: float = 1.0  # of the initial output kernel

    @nn.compact
    def __call__(self, flat: Float[Array, "n D"]) -> Float[Array, "n D"]:
        gated = jax.nn.silu(Dense(self.width, name="ff_proj")(flat)) * Dense(self.width, name="up_proj")(flat)
        return Dense(flat.shape[-1], scale=self.scale, name="ff_out")(gated)
