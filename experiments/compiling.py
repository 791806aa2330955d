"""Seconds until a decode of the shipped model is compiled, by cache, stopper and length: nothing is kept, nothing run.

    python -m experiments.compiling
    XLA_FLAGS=--xla_cpu_parallel_codegen_split_count=2 python -m experiments.compiling --name "two parts"

One row, policy `learned`, blocks of 32. Programs take turns; what was traced is forgotten before each. Adds to
results/compiling.json, under the name given, with the flags.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import jax
import numpy as np
import typer

import jaxdiff
from experiments.kept import Kept
from jaxdiff.bench.clock import Median
from jaxdiff.caches import CACHES
from jaxdiff.cli.show import progress
from jaxdiff.filters import learned_policy
from jaxdiff.stoppers import STOPPERS

PROMPT, BLOCK = 64, 32
SETTINGS = [  # cache, stopper, length
    ("none", "none", 256),
    ("prefix", "none", 256),
    ("dual", "eos", 256),
    ("none", "eotp", 256),
    ("dual", "eotp:way=block", 256),
    ("prefix", "eotp", 256),
    ("frozen", "eotp", 256),
    ("none", "eotp", 1024),
    ("dual", "eotp:way=block", 1024),
    ("prefix", "eotp", 1024),
    ("frozen", "eotp", 1024),
]
RESULTS = Path(__file__).parent / "results" / "compiling.json"


def main(
    name: Annotated[str, typer.Option(help="What the JSON calls these measurements.")] = "as it is",
    rounds: Annotated[int, typer.Option(help="Of each program.", min=1)] = 3,
) -> None:
    checkpoint = jaxdiff.load()
    policy = learned_policy("gsm-1m")
    prompts = np.full((1, PROMPT), 7, np.int32)
    seconds: dict[tuple[str, str, int], list[float]] = {setting: [] for setting in SETTINGS}
    with progress(name, rounds * len(SETTINGS)) as update:
        for round_ in range(rounds):
            for done, (cache, stop, length) in enumerate(SETTINGS, start=round_ * len(SETTINGS) + 1):
                decoder = jaxdiff.Decoder(
                    policy=policy, cache=CACHES.parse(cache), stop=STOPPERS.parse(stop), block_length=BLOCK
                )
                jax.clear_caches()
                program = jaxdiff.lower(checkpoint.model, checkpoint.params, prompts, decoder, gen_length=length)
                seconds[cache, stop, length].append(program.compile_seconds)
                update(done, 0, 1)
    kept = Kept(RESULTS, {"device": jax.devices()[0].device_kind, "jax": jax.__version__, "cores": os.cpu_count()})
    kept.entries[name] = {
        "flags": os.environ.get("XLA_FLAGS", ""),
        "seconds": {", ".join(map(str, setting)): Median.of(found).__dict__ for setting, found in seconds.items()},
    }
    kept.write()
    for setting, found in seconds.items():
        print(*setting, f"{Median.of(found).median:.2f}", [round(each, 2) for each in found])


if __name__ == "__main__":
    typer.run(main)
