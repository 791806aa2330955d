"""What the parts of a forward cost in XLA and in eager PyTorch: why a step on a CPU is as fast as it is, and no faster.

    python experiments/kernels.py

The model that ships, one row of a canvas of 320, float32, on the cores that this process may use. Of a layer: the four
attention products together, attention itself, the gated MLP; times their number they are compared with a whole step.
`ceiling` is a part's arithmetic at the speed of a large square product. Ways take turns, ROUNDS times; each is repeated
REPEATS times a turn, in one program of XLA's, in a Python loop of PyTorch's. Needs PyTorch; run it on an idle machine.
Writes results/kernels.json.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

import jaxdiff
from jaxdiff.bench.ceilings import matmul_flops
from jaxdiff.bench.clock import Median, in_turn, ratio
from jaxdiff.models.attention import attend

LENGTH, ROUNDS, REPEATS = 320, 15, 100
LITTLE = 1e-6  # of a part's output, added to its input: repeated products alone would end in denormal numbers
RESULTS = Path(__file__).parent / "results"


def main() -> None:
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    c = jaxdiff.load(dtype="float32").model.config
    width, wide, size = c.d_model, c.mlp_hidden_size, c.d_model // c.n_heads
    draw = np.random.default_rng(0)

    def array(*shape: int) -> np.ndarray:
        return (draw.standard_normal(shape) / shape[0] ** 0.5).astype(np.float32)

    seen = jnp.ones((1, 1, LENGTH), bool)

    def attention(x: Any) -> Any:
        heads = x.reshape(1, LENGTH, c.n_heads, size)
        keys = jnp.moveaxis(heads, 1, 2)
        return attend(heads, keys, keys, seen).reshape(LENGTH, width)

    def eager(x: Any) -> Any:
        heads = x.view(1, LENGTH, c.n_heads, size).transpose(1, 2)
        mixed = torch.nn.functional.scaled_dot_product_attention(heads, heads, heads)
        return mixed.transpose(1, 2).reshape(LENGTH, width)

    x, square = array(LENGTH, width), [array(width, width) for _ in range(4)]
    gated = [array(width, wide), array(width, wide), array(wide, width)]
    parts: dict[str, tuple[Callable, Callable, list[np.ndarray], float]] = {
        "four products": (_chain, _chain, square, 8 * LENGTH * width**2),
        "attention": (attention, eager, [], 4 * LENGTH**2 * width),
        "gated MLP": (
            lambda x, gate, up, down: (jax.nn.silu(x @ gate) * (x @ up)) @ down,
            lambda x, gate, up, down: (torch.nn.functional.silu(x @ gate) * (x @ up)) @ down,
            gated,
            6 * LENGTH * width * wide,
        ),
    }
    peak = matmul_flops("float32")
    found: dict[str, Any] = {"jax_matmul_gflops": peak / 1e9, "microseconds": {}}
    for name, (ours, theirs, weights, flops) in parts.items():
        seconds = in_turn({"jax": _compiled(ours, x, weights), "pytorch": _looped(theirs, x, weights)}, ROUNDS)
        found["microseconds"][name] = {
            **{way: Median.of(spent / REPEATS * 1e6).__dict__ for way, spent in seconds.items()},
            "pytorch over jax": ratio(seconds["pytorch"], seconds["jax"]).__dict__,
            "ceiling": flops / peak * 1e6,
        }
    for way in ("jax", "pytorch"):
        layer = sum(part[way]["median"] for part in found["microseconds"].values())
        found[f"{way}, {c.n_layers} layers of these, microseconds"] = c.n_layers * layer
    found["setting"] = {"device": jax.devices()[0].device_kind, "jax": jax.__version__, "torch": torch.__version__}
    found["setting"] |= {"length": LENGTH, "rounds": ROUNDS, "repeats": REPEATS}
    (RESULTS / "kernels.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


def _chain(x: Any, *weights: Any) -> Any:
    for weight in weights:
        x = x @ weight
    return x


def _compiled(part: Callable, x: np.ndarray, weights: list[np.ndarray]) -> Callable[[], object]:
    @jax.jit
    def many(x: Any, weights: Any) -> Any:  # each is fed to the next one, so that no part of it can be left out
        return jax.lax.fori_loop(0, REPEATS, lambda _, x: x + LITTLE * part(x, *weights), x)

    arguments = jnp.asarray(x), [jnp.asarray(weight) for weight in weights]
    return lambda: jax.block_until_ready(many(*arguments))


def _looped(part: Callable, x: np.ndarray, weights: list[np.ndarray]) -> Callable[[], object]:
    start, arguments = torch.from_numpy(x), [torch.from_numpy(weight) for weight in weights]

    def many() -> Any:
        with torch.inference_mode():
            out = start
            for _ in range(REPEATS):
                out = out + LITTLE * part(out, *arguments)
            return out

    return many


if __name__ == "__main__":
    main()
