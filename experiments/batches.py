"""The same answer alone and in any batch: requests decoded one by one, shuffled, and in batches of 2, 3, 8 and 32.

    python experiments/batches.py

Held-out problems of mixed lengths, the model that ships. Every other request is sampled, at temperature 0.7. Tokens,
commit trace and NFE are compared with those of the request alone. The promise is float32's; bfloat16 is measured too.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import typer
from rich.console import Console
from rich.table import Table

import jaxdiff
from experiments.meshes import BLOCK_LENGTH, GEN_LENGTH, TEMPERATURE, compare, decoder, problems
from jaxdiff.cli.show import progress
from jaxdiff.decode.batches import batches

POLICIES = ("threshold:tau=0.9", "fixed:steps=16,order=random")
SIZES = (2, 3, 8, 32)
DTYPES = ("float32", "bfloat16")
SEED = 0
RESULT = Path(__file__).parent / "results" / "batches.json"


def decoded(checkpoint: jaxdiff.Checkpoint, policy: str, order: np.ndarray, size: int) -> jaxdiff.Result:
    """The requests in batches of `size`, in this order; the result in the requests' own."""
    given, parts, places = problems(checkpoint, order.size), [], []
    for at in batches(order.size, size):
        rows = order[at]
        result = jaxdiff.decode(
            checkpoint.model,
            checkpoint.params,
            given.prompts[rows],
            decoder(policy, given.temperature[rows]),
            origin=given.origin[rows],
            key=given.keys[rows],
            gen_length=GEN_LENGTH,
        )
        parts.append(jax.tree.map(np.asarray, dataclasses.replace(result, policy=())))
        places.append(rows)
    where = np.concatenate(places)
    first = np.asarray([np.flatnonzero(where == request)[0] for request in range(order.size)])
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[first], *parts)


def main(n: Annotated[int, typer.Option(min=1, help="Requests.")] = 32) -> None:
    """Writes results/batches.json."""
    found: list[dict[str, Any]] = []
    ways = [("shuffled, 8", 8), *((str(size), size) for size in SIZES)]
    with progress("decodes", len(DTYPES) * len(POLICIES) * (1 + len(ways))) as update:
        for dtype in DTYPES:
            checkpoint = jaxdiff.load(dtype=dtype)
            for policy in POLICIES:
                alone = decoded(checkpoint, policy, np.arange(n), 1)
                for name, size in ways:
                    order = np.random.default_rng(SEED).permutation(n) if "shuffled" in name else np.arange(n)
                    away = compare(alone, decoded(checkpoint, policy, order, size))
                    found.append({"dtype": dtype, "policy": policy, "batch": name} | away)
                    update(len(found), 0, 1)
    setting = {
        "n": n,
        "model": "gsm-1m",
        "gen_length": GEN_LENGTH,
        "block_length": BLOCK_LENGTH,
        "jax": jax.__version__,
    }
    setting |= {"temperature": [0.0, TEMPERATURE], "seed": SEED, "device": jax.devices()[0].device_kind}
    RESULT.write_text(json.dumps({"setting": setting, "runs": found}, indent=1) + "\n")

    table = Table(
        "dtype", "batch", "rows", "differ", "without a near-tie", "near-ties", "decisions", title=f"{n} requests"
    )
    for dtype in DTYPES:
        for name, _ in ways:
            points = [run for run in found if run["dtype"] == dtype and run["batch"] == name]
            names = ("differ", "unexplained", "near_ties", "decisions")
            sums = [str(sum(point[key] for point in points)) for key in names]
            table.add_row(dtype, name, str(n * len(points)), *sums)
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
