"""What this machine can do at most, measured in the same run, and how much of it a forward reaches."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff.leaves import weights_met
from jaxdiff.protocols import Model
from jaxdiff.types import Params

SIZE = 2048  # of the square product
STREAM = 1 << 28  # bytes read by the streaming pass
TRIES = 5


def best_seconds(call: Callable[[], Any]) -> float:
    """The least of a few warm calls."""
    jax.block_until_ready(call())
    seconds = []
    for _ in range(TRIES):
        since = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - since)
    return min(seconds)


def matmul_flops(dtype: str) -> float:
    """FLOP/s of one square product."""
    a = jnp.ones((SIZE, SIZE), dtype)
    product = jax.jit(jnp.matmul)
    return 2 * SIZE**3 / best_seconds(lambda: product(a, a))


def stream_bytes(dtype: str) -> float:
    """Bytes/s of reading an array that no cache holds: what a step of few tokens does with the weights."""
    size = jnp.dtype(dtype).itemsize
    x = jnp.ones((1024, STREAM // size // 1024), dtype)
    v = jnp.ones((1, 1024), dtype)
    product = jax.jit(jnp.matmul)
    return STREAM / best_seconds(lambda: product(v, x))


def forward_cost(model: Model, params: Params, rows: int, tokens: int, attended: int) -> tuple[float, float]:
    """(FLOPs, bytes) of one forward of `tokens` in each row that attends to `attended` keys, the head not counted.

    Two FLOPs for each weight that a token meets, and 4 D FLOPs a layer for each pair of query and key; bytes are the
    weights once, and keys and values. Of experts only those that a token is sent to count as FLOPs.

    Raises InputError for a leaf without a kind.
    """
    c = model.config
    layers = jax.tree.leaves({k: v for k, v in params.items() if k not in ("wte", "head")})
    weights = float(sum(leaf.size * leaf.dtype.itemsize for leaf in layers))
    width = c.n_heads * c.head_dim
    flops = rows * tokens * (2 * weights_met(params, c) + 4 * c.n_layers * width * attended)
    cached = 2 * rows * attended * c.n_layers * c.n_kv_heads * c.head_dim * jnp.dtype(c.dtype).itemsize
    return flops, weights + cached
