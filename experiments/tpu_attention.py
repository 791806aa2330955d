"""What a layer's attention moves to and from a TPU's main memory: plain products against the kernel.

    pip install '.[test]'    # libtpu of it
    python experiments/tpu_attention.py

Heads of LLaDA-8B and Dream-7B in bfloat16, on chips that are not here: compiled by libtpu, nothing is run. Bytes are
read from the compiled program. Writes results/tpu_attention.json.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from rich.console import Console
from rich.table import Table

from jaxdiff.bench.hlo import Hlo
from jaxdiff.bench.targets import tpu
from jaxdiff.models import attention, splash
from jaxdiff.parallel.mesh import compiling_for

CHIPS = ("v5e:1x1", "v6e:1x1")
SIZE = 128  # of a head
HEADS = {"llada-8b": (32, 32), "dream-7b": (28, 4)}  # of queries; of keys and values
SHAPES = ((1, 1280, 1280), (8, 1280, 1280), (8, 288, 1280))  # rows, queries, keys
WAYS: dict[str, Callable[..., Any]] = {
    "products": lambda q, k, v, seen: attention._products(q, k, v, seen[:, None]),
    "kernel": splash.attend,
}
RESULTS = Path(__file__).parent / "results" / "tpu_attention.json"


def cost(chip: str, way: str, shape: tuple[int, int, int], heads: tuple[int, int]) -> dict[str, float]:
    """Bytes that one layer's attention moves and needs beside its arguments."""
    rows, queries, keys = shape
    there = NamedSharding(tpu(chip), PartitionSpec())

    def array(*sizes: int, dtype: Any = jnp.bfloat16) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(sizes, dtype, sharding=there)

    q, k = array(rows, queries, heads[0], SIZE), array(rows, heads[1], keys, SIZE)
    with compiling_for("tpu"):
        compiled = jax.jit(WAYS[way]).lower(q, k, k, array(rows, keys, dtype=jnp.bool_)).compile()
    hlo = Hlo(compiled.as_text() or "")
    moved = sum(run.times * hlo.traffic(run) for run in hlo.runs())
    memory: Any = compiled.memory_analysis()
    return {"moved": moved, "beside": memory.temp_size_in_bytes}


def main() -> None:
    table = Table("chip", "heads", "rows x queries x keys", "products, GB", "kernel, GB", "ratio", box=None)
    found = []
    for chip in CHIPS:
        for name, heads in HEADS.items():
            for shape in SHAPES:
                ways = {way: cost(chip, way, shape, heads) for way in WAYS}
                found.append({"chip": chip, "heads": name, "shape": shape, "ways": ways})
                products, kernel = (ways[way]["moved"] / 1e9 for way in ("products", "kernel"))
                sizes = " x ".join(map(str, shape))
                table.add_row(chip, name, sizes, f"{products:.2f}", f"{kernel:.2f}", f"{products / kernel:.1f}")
    RESULTS.write_text(json.dumps({"jax": jax.__version__, "found": found}, indent=1) + "\n")
    Console().print(table)


if __name__ == "__main__":
    main()
