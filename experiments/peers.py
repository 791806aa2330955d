"""jaxdiff against the published loops in PyTorch, eager and compiled: lengths 256 and 1,024, batch 1 and 8.

    python experiments/peers.py
    python experiments/peers.py --length 256 --batch-size 1 --against dual,eotp

Held-out problems, the model that ships, block 32, temperature 0, float32. In each round every program decodes once, in
turn. Each comparison is kept in results/peers.json as it is done, in place of an earlier one of the same setting. Needs
PyTorch and a C++ compiler; run it on an idle machine.
"""

from __future__ import annotations

import importlib.metadata
import itertools
import json
import os
from pathlib import Path
from typing import Annotated, Any

import jax
import typer
from rich.console import Console
from rich.table import Table

import jaxdiff
from jaxdiff.bench.measure import Work
from jaxdiff.bench.peers import ONE_ROW, PEERS, against_pytorch, parse_peers
from jaxdiff.checkpoint import SHIPPED, model_folder
from jaxdiff.cli.show import progress
from jaxdiff.decode import Decoder
from jaxdiff.filters import FILTERS, load_filter
from jaxdiff.tasks import task

LENGTHS, ROWS = (256, 1024), (1, 8)
BLOCK = 32
SEED = 0  # of the problems
RESULT = Path(__file__).parent / "results" / "peers.json"


def main(
    length: Annotated[list[int] | None, typer.Option(help="Tokens to generate; may be given more than once.")] = None,
    batch_size: Annotated[list[int] | None, typer.Option(help="Rows; may be given more than once.")] = None,
    against: Annotated[str, typer.Option(help="Which loops.")] = ",".join(PEERS),
    rounds: Annotated[int, typer.Option(min=1)] = 7,
) -> None:
    """Writes results/peers.json."""
    checkpoint = jaxdiff.load()
    learned, _ = load_filter(model_folder(SHIPPED) / FILTERS / "official")
    for size, rows in itertools.product(length or LENGTHS, batch_size or ROWS):
        names = [name for name in parse_peers(against, 1) if rows == 1 or name not in ONE_ROW]
        work = _work(checkpoint, size, rows, rounds)
        for name in names:
            with progress(f"{name}, {size} x {rows}", rounds) as update:
                found = against_pytorch(work, [name], learned=learned, progress=update)[name]
            _keep({"loop": name, "gen_length": size, "batch_size": rows, "rounds": rounds} | found)
    Console().print(_table(json.loads(RESULT.read_text())["runs"]))


def _work(checkpoint: jaxdiff.Checkpoint, length: int, rows: int, rounds: int) -> Work:
    problems = itertools.islice(task("gsm_symbolic").problems("test", SEED), rows)
    tokenizer = checkpoint.tokenizer_for("gsm_symbolic")
    prompts = [tokenizer.prompt(problem.question) for problem in problems]
    padded, origin = jaxdiff.pad_prompts(prompts, fill=tokenizer.eos_id)
    return Work(
        model=checkpoint.model,
        params=checkpoint.params,
        prompts=padded,
        origin=origin,
        decoder=Decoder(block_length=BLOCK),
        gen_length=length,
        block_length=BLOCK,
        rounds=rounds,
    )


def _keep(run: dict[str, Any]) -> None:
    """The run in the file, sorted."""
    runs = json.loads(RESULT.read_text())["runs"] if RESULT.is_file() else []
    found = {_place(each): each for each in [*runs, run]}
    setting = {
        "model": SHIPPED,
        "problems": "gsm_symbolic, test, the first batch_size of them",
        "seed": SEED,
        "block_length": BLOCK,
        "dtype": "float32",
        "device": jax.devices()[0].device_kind,
        "cores": len(os.sched_getaffinity(0)),
        "jax": jax.__version__,
        "torch": importlib.metadata.version("torch"),
        "jaxdiff": importlib.metadata.version("jaxdiff"),
    }
    RESULT.write_text(json.dumps({"setting": setting, "runs": [found[at] for at in sorted(found)]}, indent=1) + "\n")


def _place(run: dict[str, Any]) -> tuple[int, int, int]:
    return run["gen_length"], run["batch_size"], PEERS.index(run["loop"])


def _table(runs: list[dict[str, Any]]) -> Table:
    table = Table(
        "length",
        "batch",
        "loop",
        "eager / jaxdiff",
        "compiled / jaxdiff",
        "jaxdiff, s",
        "forwards",
        "same tokens %",
        box=None,
    )
    for run in runs:
        ours, eager, compiled = (run[way] for way in ("jaxdiff", "eager", "compiled"))
        table.add_row(
            str(run["gen_length"]),
            str(run["batch_size"]),
            run["loop"],
            _ratio(eager),
            "" if compiled is None else _ratio(compiled),
            f"{ours['seconds']['median']:.3f}",
            f"{ours['forwards']} / {eager['forwards']}",
            f"{100 * eager['same_tokens']:.1f}",
        )
    return table


def _ratio(way: dict[str, Any]) -> str:
    at = way["ratio"]
    return f"{at['median']:.2f} ({at['low']:.2f} to {at['high']:.2f})"


if __name__ == "__main__":
    typer.run(main)
