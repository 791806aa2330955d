"""Attention of many queries on a TPU: JAX's splash kernel (Pallas), which never writes the logits to main memory.

For LLaDA-8B's heads and 8 rows of 1,280 positions the plain products move 5.4 GB a layer, the kernel 0.7
(`experiments/tpu_attention.py`). A kernel is not divided by the partitioner: where heads lie over devices it runs on
each device's own.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxdiff.parallel.mesh import over_heads, spread_over

LANES = 128  # of a TPU: sizes that the kernel takes are multiples of it
TILE = 1024  # queries, and keys, whose logits it holds at once, at most: 4 MB of on-chip memory


def fits(q: Float[Array, "B T H E"], k: Float[Array, "B K S E"], mask: Bool[Array, "B t S"]) -> bool:
    """Whether `attend` takes these shapes. Of fewer queries the plain products' logits are small."""
    alike, many = mask.shape[1] == 1, q.shape[1] >= LANES
    return alike and many and q.shape[-1] % LANES == 0 and k.shape[1] % spread_over() == 0


def attend(
    q: Float[Array, "B T H E"],
    k: Float[Array, "B K S E"],
    v: Float[Array, "B K S E"],
    seen: Bool[Array, "B S"],
    *,
    interpret: bool = False,
) -> Float[Array, "B T H E"]:
    """Attention of all queries of a row over the keys that it sees, all where it sees none; float32 softmax.

    `interpret`: run the kernel's operations one by one, on any device, to test it.
    """
    # Pallas takes 0.2 s to import, which nobody without a TPU should wait for.
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    rows, length, heads, size = q.shape
    groups, columns = k.shape[1:3]
    (queries, one), (keys, other) = _tiles(length), _tiles(columns)
    q = jnp.moveaxis(q * (size**-0.5), 1, 2).reshape(rows, groups, heads // groups, length, size)
    q = jnp.pad(q, [(0, 0), (0, 0), (0, 0), (0, queries - length), (0, 0)])
    k, v = (jnp.pad(x, [(0, 0), (0, 0), (0, keys - columns), (0, 0)]) for x in (k, v))
    seen = jnp.pad(seen | ~jnp.any(seen, axis=1, keepdims=True), [(0, 0), (0, keys - columns)])
    run = kernel.make_splash_mqa(
        masks.MultiHeadMask([masks.FullMask((queries, keys))] * (heads // groups)),
        block_sizes=kernel.BlockSizes(one, other, other, one, other, other, one, other),
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )

    def row(
        q: Float[Array, "K R T E"], k: Float[Array, "K S E"], v: Float[Array, "K S E"], seen: Bool[Array, " S"]
    ) -> Float[Array, "K R T E"]:
        segments = kernel.SegmentIds(jnp.ones(queries, jnp.int32), seen.astype(jnp.int32))
        out: Any = jax.vmap(lambda q, k, v: run(q, k, v, segments))(q, k, v)
        return out

    out = over_heads(jax.vmap(row), q, k, v, seen)
    return jnp.moveaxis(out[:, :, :, :length].reshape(rows, heads, length, size), 1, 2)


def _tiles(length: int) -> tuple[int, int]:
    """The length of whole tiles of one size that hold so many entries, and that size."""
    count = -(-length // TILE)
    each = -(-length // (count * LANES)) * LANES
    return count * each, each
