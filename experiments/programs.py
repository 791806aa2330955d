"""What a decode's program costs before it runs: seconds of compiling by depth, temporaries of a published shape.

    python experiments/programs.py

`depth`: the model that ships, made 8 and 32 layers deep, in float32, and the 8B shape of as many, in bfloat16; programs
take turns, ROUNDS times, past every cache. `temporaries`: LLaDA-8B's shape with its 32 layers, B 8, L 1280, V 126464,
from the compiler's memory analysis, in bfloat16 and in float32 (a CPU has no bfloat16 products: it converts the
weights, in temporaries).
Nothing is run. Writes results/programs.json.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jaxdiff
from jaxdiff.bench.clock import Median, ratio
from jaxdiff.bench.measure import Work
from jaxdiff.bench.shapes import abstract_params, shaped
from jaxdiff.cli.show import progress
from jaxdiff.decode.cache import parse_cache
from jaxdiff.models import build
from jaxdiff.policies import Threshold

ROUNDS, DEPTHS, BLOCK = 5, (8, 32), 32
RESULTS = Path(__file__).parent / "results"


def work(model: Any, rows: int, prompt: int, generated: int) -> Work:
    prompts, origin = np.full((rows, prompt), 7, np.int32), np.zeros(rows, np.int32)
    return Work(model, abstract_params(model), prompts, origin, Threshold(), generated, BLOCK, rounds=1)


def main() -> None:
    shipped = json.loads((jaxdiff.load().path / "config.json").read_text())
    models = {
        "gsm-1m": lambda depth: build(shipped | {"n_layers": depth, "dtype": "float32"}),
        "llada-8b": lambda depth: shaped("llada-8b", n_layers=depth),
    }
    found: dict[str, Any] = {"compile_seconds": {}, "temporaries": {}}
    for name, of_depth in models.items():
        ways = {depth: work(of_depth(depth), 1, 64, 256) for depth in DEPTHS}
        seconds: dict[int, list[float]] = {depth: [] for depth in DEPTHS}
        with progress(name, ROUNDS) as update:
            for index in range(ROUNDS):
                for depth in DEPTHS if index % 2 else DEPTHS[::-1]:
                    jax.clear_caches()  # of what was traced
                    seconds[depth].append(ways[depth].program().compile_seconds)
                update(index + 1, 0, 1)
        few, many = (np.asarray(seconds[depth]) for depth in DEPTHS)
        found["compile_seconds"][name] = {
            **{f"{depth} layers": Median.of(seconds[depth]).__dict__ for depth in DEPTHS},
            "ratio": ratio(many, few).__dict__,
        }
    for dtype in ("bfloat16", "float32"):
        for cache in ("none", "dual"):
            whole = work(shaped("llada-8b", dtype), 8, 64, 1216)
            program = whole.program(cache=parse_cache(cache))
            kept = 0 if cache == "none" else 2 * 32 * 8 * 32 * 1280 * 128 * (2 if dtype == "bfloat16" else 4)
            found["temporaries"][f"{dtype}, cache {cache}"] = {
                "bytes": program.temp_bytes,
                "keys and values": kept,
                "arguments": program.argument_bytes,
            }
    found["setting"] = {"device": jax.devices()[0].device_kind, "jax": jax.__version__, "rounds": ROUNDS}
    (RESULTS / "programs.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
