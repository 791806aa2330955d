"""What a decode's program costs before it runs: seconds of compiling by depth, temporaries of a published shape.

    pip install '.[test]'    # libtpu and qwix of it
    python experiments/programs.py

`depth`: the model that ships, made 8 and 32 layers deep, in float32, and the 8B shape of as many, in bfloat16; programs
take turns, ROUNDS times, past every cache. `temporaries`: LLaDA-8B's shape with its 32 layers, L 1280, V 126464, from
the compiler's memory analysis, beside keys and values: in float32 for the device at hand, in int8 for a TPU chip that
is not here (in bfloat16: `tpu_memory.py`). A CPU would convert bfloat16 weights. Nothing is run.
Writes results/programs.json.
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
from jaxdiff.bench.targets import tpu
from jaxdiff.caches import CACHES
from jaxdiff.cli.show import progress
from jaxdiff.models import build
from jaxdiff.policies import Threshold

ROUNDS, DEPTHS, BLOCK = 5, (8, 32), 32
PROMPT, GENERATED = 64, 1216
CHIPS = (  # None is the device at hand; dtype, weights, rows, caches
    (None, "float32", None, 8, ("none", "dual")),
    ("v5e:1x1", "bfloat16", "int8", 1, ("none", "dual")),
)
RESULTS = Path(__file__).parent / "results"


def work(model: Any, rows: int, generated: int, weights: str | None = None, chip: str | None = None) -> Work:
    return Work(
        model=model,
        params=abstract_params(model, weights),
        prompts=np.full((rows, PROMPT), 7, np.int32),
        origin=np.zeros(rows, np.int32),
        decoder=jaxdiff.Decoder(policy=Threshold(), block_length=BLOCK),
        gen_length=generated,
        block_length=BLOCK,
        rounds=1,
        target=None if chip is None else tpu(chip),
    )


def main() -> None:
    shipped = json.loads((jaxdiff.load().path / "config.json").read_text())
    models = {
        "gsm-1m": lambda depth: build(shipped | {"n_layers": depth, "dtype": "float32"}),
        "llada-8b": lambda depth: shaped("llada-8b", n_layers=depth),
    }
    found: dict[str, Any] = {"compile_seconds": {}, "temporaries": {}}
    for name, of_depth in models.items():
        ways = {depth: work(of_depth(depth), 1, 256) for depth in DEPTHS}
        seconds: dict[int, list[float]] = {depth: [] for depth in DEPTHS}
        with progress(name, ROUNDS) as update:
            for index in range(ROUNDS):
                for depth in DEPTHS if index % 2 else DEPTHS[::-1]:
                    jax.clear_caches()  # of what was traced
                    seconds[depth].append(ways[depth].program().program.compile_seconds)
                update(index + 1, 0, 1)
        few, many = (np.asarray(seconds[depth]) for depth in DEPTHS)
        found["compile_seconds"][name] = {
            **{f"{depth} layers": Median.of(seconds[depth]).__dict__ for depth in DEPTHS},
            "ratio": ratio(many, few).__dict__,
        }
    for chip, dtype, weights, rows, caches in CHIPS:
        for cache in caches:
            model: Any = shaped("llada-8b", dtype)
            program = work(model, rows, GENERATED, weights, chip).program(cache=CACHES.parse(cache)).program
            kv = jax.eval_shape(lambda model=model, rows=rows: model.empty_kv(rows, PROMPT + GENERATED))
            kept = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(kv)) if cache != "none" else 0
            found["temporaries"][f"{chip or 'here'}, {weights or dtype}, B {rows}, cache {cache}"] = {
                "beyond keys and values": program.temp_bytes - kept,
                "keys and values": kept,
                "arguments": program.argument_bytes,
                "compile seconds": program.compile_seconds,
            }
    found["setting"] = {"device": jax.devices()[0].device_kind, "jax": jax.__version__, "rounds": ROUNDS}
    (RESULTS / "programs.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
