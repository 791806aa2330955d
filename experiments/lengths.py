"""Does a long canvas cost accuracy? Standard decoding of the same test problems at 256 and at 1024, paired.

    python experiments/lengths.py --n 300

Under the `eos` stopper, which gives standard decoding's text without the forwards after it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

import jaxdiff
from experiments.policies import describe, measure, verdicts_of
from jaxdiff.cli.show import progress
from jaxdiff.metrics import paired_difference
from jaxdiff.tasks import evaluate, gsm_symbolic

LENGTHS = (256, 1024)
ROWS = 4  # per batch: on CPU a row costs least in small batches
RESULT = Path(__file__).parent / "results" / "lengths.json"


def main(
    n: Annotated[int, typer.Option(help="Test problems.", min=1)] = 300,
    seed: Annotated[int, typer.Option(help="Of the problems.", min=0)] = 0,
    model: Annotated[str, typer.Option(help="A model folder, or the name of one that ships.")] = "gsm-1m",
    out: Annotated[Path, typer.Option(help="The JSON.")] = RESULT,
) -> None:
    checkpoint = jaxdiff.load(model)
    points: dict[int, dict[str, Any]] = {}
    for length in LENGTHS:
        with progress(f"length {length}", n) as update:
            report = evaluate.evaluate(
                checkpoint,
                gsm_symbolic.NAME,
                jaxdiff.Decoder(stop=jaxdiff.stoppers.Eos()),
                n=n,
                seed=seed,
                gen_length=length,
                batch_size=ROWS,
                progress=update,
            )
        points[length] = measure((length,), (report,))[0]
    short, long = (verdicts_of(points[length]) for length in LENGTHS)
    difference = [100 * d for d in paired_difference(long, short)]
    setting = describe(checkpoint, model, n, "eos", seed) | {"gen_length": LENGTHS}
    out.write_text(json.dumps({"setting": setting, "points": points, "long_minus_short": difference}, indent=1) + "\n")

    table = Table("length", "accuracy %", "95 %", "NFE", title=f"{n} test problems, seed {seed}")
    for length, point in points.items():
        low, high = point["interval"]
        table.add_row(
            str(length),
            f"{point['accuracy']:.1f}",
            f"{low:.1f} to {high:.1f}",
            f"{point['nfe']:.1f}",
        )
    console = Console()
    console.print(table)
    console.print("1024 minus 256, paired: {:+.1f} points ({:+.1f} to {:+.1f})".format(*difference))


if __name__ == "__main__":
    typer.run(main)
