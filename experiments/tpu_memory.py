"""What a decode of LLaDA-8B's shape needs of one TPU chip beyond weights, keys and values, with each cache.

    pip install '.[test]'    # libtpu of it
    python experiments/tpu_memory.py [CACHE ...]

B 8, L 1,280, block 32, bfloat16, one v5p chip that is not here: compiled by libtpu, nothing is run. `copies`: what the
program makes anew in main memory as large as all keys (or all values) of the cache, by kind of instruction; where two
of them live at once it holds keys and values more than once. Writes results/tpu_memory.json; a call for some of the
caches replaces those alone.
"""

from __future__ import annotations

import collections
import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

import jaxdiff
from jaxdiff.bench.hlo import CALLS, NAMES, Hlo
from jaxdiff.bench.shapes import abstract_params, shaped
from jaxdiff.bench.targets import tpu
from jaxdiff.caches import CACHES
from jaxdiff.policies import Threshold

CHIP, SHAPE = "v5p:1x1x1", "llada-8b"
ROWS, PROMPT, GENERATED, BLOCK = 8, 256, 1024, 32
WAYS = ("none", "prefix", "dual", "frozen", "frozen:freeze=commit", "frozen:freeze=prompt")
BOUND = 1.5e9  # of bytes beyond weights, keys and values
RESULTS = Path(__file__).parent / "results" / "tpu_memory.json"


def needs(cache: str) -> dict[str, Any]:
    """Bytes on the chip, from the compiler's memory analysis."""
    model = shaped(SHAPE)
    decoder = jaxdiff.Decoder(policy=Threshold(), cache=CACHES.parse(cache), block_length=BLOCK)
    prompts = np.full((ROWS, PROMPT), 7, np.int32)
    program = jaxdiff.lower(model, abstract_params(model), prompts, decoder, gen_length=GENERATED, target=tpu(CHIP))
    leaves: list[Any] = jax.tree.leaves(jax.eval_shape(lambda: model.empty_kv(ROWS, PROMPT + GENERATED)))
    kept = 0 if cache == "none" else sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
    return {
        "beyond": program.temp_bytes - kept,
        "keys_and_values": kept,
        "arguments": program.argument_bytes,
        "compile_seconds": program.compile_seconds,
        "copies": copies(program.compiled.as_text() or "", min(leaf.size for leaf in leaves)) if kept else {},
    }


def copies(text: str, size: int) -> dict[str, int]:
    """Instructions whose result is an array of so many entries, by kind; in-place updates and mere names left out."""
    hlo = Hlo(text)
    made: collections.Counter[str] = collections.Counter()
    for run in hlo.runs():
        each = run.instruction
        if run.fused or each.kind in (*NAMES, *CALLS, "dynamic-update-slice"):
            continue
        for array, written in zip(each.results, hlo.written(each), strict=False):
            made[each.kind] += array.main and array.size == size and written == array.bytes
    return dict(+made)


def main() -> None:
    found = json.loads(RESULTS.read_text())["caches"] if RESULTS.exists() else {}
    for cache in sys.argv[1:] or WAYS:
        found[cache] = needs(cache)
        numbers = {
            "setting": {
                "chip": CHIP,
                "shape": SHAPE,
                "rows": ROWS,
                "prompt": PROMPT,
                "generated": GENERATED,
                "block": BLOCK,
                "jax": jax.__version__,
            },
            "bound": BOUND,
            "caches": found,
        }
        RESULTS.write_text(json.dumps(numbers, indent=1) + "\n")
    table = Table("cache", "beyond, GB", "bound", "keys and values, GB", "copies", "compiling, s", box=None)
    for cache, each in found.items():
        within = "within" if each["beyond"] <= BOUND else "above"
        kept, copied = f"{each['keys_and_values'] / 1e9:.2f}", str(sum(each["copies"].values()))
        table.add_row(cache, f"{each['beyond'] / 1e9:.2f}", within, kept, copied, f"{each['compile_seconds']:.0f}")
    Console().print(table)


if __name__ == "__main__":
    main()
