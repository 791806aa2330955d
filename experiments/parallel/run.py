"""How far does a model that was trained for parallel decoding go past what a policy alone can do?

    python -m experiments.parallel.run choose base gsm-1m
    python -m experiments.parallel.run choose control runs/control/model
    python -m experiments.parallel.run choose parallel runs/parallel/model
    python -m experiments.parallel.run test base gsm-1m          # after all were chosen; then the others alike
    python -m experiments.parallel.run test base gsm-1m --gen-length 1024 --n 200     # the numbers chosen at 256
    python -m experiments.parallel.run report

choose  Every policy's number swept on validation problems. Two are chosen of each: `as accurate`, the fastest that is
        no less accurate than the base's standard decoding, and `a point less`, the fastest that loses at most one
        point. AUP is that of the swept points.
test    The chosen numbers once on test problems, paired with the base's standard decoding of the same problems; of
        other lengths and tasks too, with the numbers chosen for this one.

A model is given by the name of its rows and where it lies; `--adapter` as of `jaxdiff eval`. `learned` is the best
filter of the model's own folder, or, where it has none, left out. Each entry is kept in results/LENGTH.json when it is
done, and the same call goes on after them; a name stands for the weights that it was first measured with. Of another
task (`apart.py`) results lie in results/TASK-LENGTH.json.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

import jaxdiff
from experiments.kept import Kept
from experiments.parallel import apart
from experiments.policies import accuracy, decoder_of, describe, measure, verdicts_of
from jaxdiff import policies
from jaxdiff.cli.show import progress
from jaxdiff.filters import BEST_FILTER, FILTERS, learned_policy
from jaxdiff.metrics import aup, paired_difference
from jaxdiff.stoppers import Eos
from jaxdiff.tasks import evaluate, gsm_symbolic

RESULTS = Path(__file__).parent / "results"
LENGTH, BLOCK, SLOTS, SEED = 256, 32, 16, 0
N_CHOOSE, N_TEST = 500, 1000
BASE, STANDARD = "base", "standard"
LOSSES = {"as accurate": 0.0, "a point less": 1.0}  # points of accuracy under the base's standard decoding

TAUS = (0.999, 0.99, 0.97, 0.95, 0.9, 0.8, 0.7, 0.6)
ENTROPIES = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 0.9, 1.2)
FILTER_TAUS = (0.97, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
SIZES = (32, 64, 128)


@dataclasses.dataclass(frozen=True)
class Row:
    """A policy, the values of its number from careful to rash, and how it is made from one, or one for each row."""

    name: str
    values: tuple[float, ...]
    policy: Callable[[Any], jaxdiff.Policy]
    block: int = BLOCK  # 0: the whole answer


def rows_of(folder: Path, adapter: Path | None) -> tuple[Row, ...]:
    """The rows of a model's table; `multi_block` opens blocks as published."""
    made = [
        Row("threshold", TAUS, lambda v: policies.Threshold(tau=v)),
        Row("entropy", ENTROPIES, lambda v: policies.Entropy(tau=v)),
        Row("oracle", (0.0,), lambda _: policies.Oracle()),
        *(Row(f"entropy, block {size}", ENTROPIES, lambda v: policies.Entropy(tau=v), size) for size in SIZES[1:]),
        *(
            Row(f"multi_block, {size}", ENTROPIES, lambda v, size=size: policies.MultiBlock(size=size, tau=v), 0)
            for size in SIZES
        ),
    ]
    if any((home / FILTERS / BEST_FILTER).is_dir() for home in (folder, adapter) if home is not None):
        learned = functools.partial(learned_policy, folder, adapter=adapter)
        made.append(Row("learned", FILTER_TAUS, lambda v: learned(tau=v)))
        made.append(Row("learned, block 64", FILTER_TAUS, lambda v: learned(tau=v), 64))
    return tuple(made)


def points(
    checkpoint: jaxdiff.Checkpoint,
    row: Row,
    values: Sequence[float],
    *,
    n: int,
    split: str,
    length: int,
    task: str = gsm_symbolic.NAME,
) -> list[dict[str, Any]]:
    """One point of the frontier for each value; a bar on stderr."""
    with progress(f"{row.name}, {split}", n * len(values)) as update:
        reports = evaluate.sweep(
            *(checkpoint, task),
            functools.partial(decoder_of, row.policy, Eos(), block_length=row.block or length),
            values,
            n=n,
            seed=SEED,
            split=split,
            batch_size=SLOTS,
            gen_length=length,
            progress=update,
        )
    made = measure(values, reports)
    return [
        point | {"n": n, "work": float(report.work.mean()), "seconds": report.seconds}
        for point, report in zip(made, reports, strict=True)
    ]


def standard_of(kept: Kept, checkpoint: jaxdiff.Checkpoint, *, split: str, **asked: Any) -> dict[str, Any]:
    row = Row(STANDARD, (0.0,), lambda _: policies.Fixed())
    make = functools.partial(points, checkpoint, row, row.values, split=split, **asked)
    return kept.once(f"{BASE} | {STANDARD} | {split}", make)[0]


def chosen_of(swept: Sequence[dict[str, Any]], least: float) -> dict[str, Any] | None:
    """The fastest point of at least so much accuracy; None where there is none."""
    enough = [point for point in swept if point["accuracy"] >= least]
    return max(enough, key=lambda point: point["tpf"]) if enough else None


def report(entries: dict[str, Any], chosen: dict[str, Any]) -> str:
    """Of each model and policy the frontier's AUP, and what was chosen for each loss, on test problems.

    `chosen`: the entries that the numbers were chosen of, whose frontiers they are.
    """
    standard = entries[f"{BASE} | {STANDARD} | test"][0]
    swept = {name: each for name, each in chosen.items() if name.endswith("| validation")}
    best = max(point["accuracy"] for each in swept.values() for point in each)
    lines = [
        f"Test, n {standard['n']}. Brackets: 95 % intervals (Wilson; differences paired, Newcombe). AUP: of the swept "
        f"validation points, n {chosen[f'{BASE} | {STANDARD} | validation'][0]['n']}.",
        "",
        "| model | policy | chosen to be | number | accuracy % | minus the base's standard | NFE | TPF | work | AUP |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, each in entries.items():
        model, row, split = name.split(" | ")
        if split != "test":
            continue
        area = ""
        if (frontier := swept.get(f"{model} | {row} | validation")) is not None:
            area = f"{aup([(point['tpf'], point['accuracy']) for point in frontier], best):.0f}"
        for point in each:
            off = [100 * x for x in paired_difference(verdicts_of(point), verdicts_of(standard))]
            number = f"{point['value']:g}" if point.get("chosen") else ""
            lines.append(
                f"| {model} | {row} | {' and '.join(point.get('chosen', ()))} | {number} | {accuracy(point)} | "
                + "{:+.1f} [{:+.1f}, {:+.1f}] | ".format(*off)
                + f"{point['nfe']:.2f} | {point['tpf']:.2f} | {point['work']:.2f} | {area} |"
            )
    return "\n".join(lines) + "\n"


app = typer.Typer(add_completion=False)
Name = Annotated[str, typer.Argument(help=f"Of its rows; {BASE} is what the others are compared with.")]
Model = Annotated[str, typer.Argument(help="A model's name or folder.")]
Adapter = Annotated[str | None, typer.Option(help="The name of one of its adapters, or a folder.")]
Length = Annotated[int, typer.Option(min=1, help="Generated positions.")]
Only = Annotated[list[str] | None, typer.Option(help="Policies, by the names of their rows; default all.")]
N = Annotated[int, typer.Option(min=1, help="Problems.")]
Task = Annotated[str, typer.Option(help=f"Whose problems: {gsm_symbolic.NAME}, or a part of it, {apart.UNSEEN}.")]
Like = Annotated[str | None, typer.Option(help="Of another model's rows: for which the numbers were chosen.")]


def results_of(task: str, length: int) -> Path:
    return RESULTS / (f"{length}.json" if task == gsm_symbolic.NAME else f"{task}-{length}.json")


def opened(
    name: str, model: str, adapter: str | None, length: int, task: str
) -> tuple[Kept, jaxdiff.Checkpoint, tuple[Row, ...]]:
    """The results, the model, and its rows. Raises typer.BadParameter for a name that stands for other weights."""
    checkpoint = jaxdiff.load(model, adapter=adapter)
    weights = describe(checkpoint, model, 0, "eos", SEED)
    setting = {key: weights[key] for key in ("temperature", "device", "versions")} | {"task": task}
    kept = Kept(results_of(task, length), setting | {"seed": SEED, "gen_length": length, "stop": "eos"})
    if kept.once(f"{name} | weights | model", lambda: weights["weights"]) != weights["weights"]:
        raise typer.BadParameter(f"{name}: was measured with other weights; delete its entries of {kept.path}")
    return kept, checkpoint, rows_of(checkpoint.path, checkpoint.adapter)


def show(name: str, row: Row, measured: Sequence[dict[str, Any]]) -> None:
    for point in measured:
        print(f"{name}, {row.name} {point['value']:g}: {accuracy(point)} %, NFE {point['nfe']:.2f}, ", end="")
        print(f"TPF {point['tpf']:.2f}", flush=True)


@app.command()
def choose(name: Name, model: Model, adapter: Adapter = None, only: Only = None, n: N = N_CHOOSE) -> None:
    kept, checkpoint, rows = opened(name, model, adapter, LENGTH, gsm_symbolic.NAME)
    asked: dict[str, Any] = {"n": n, "split": "validation", "length": LENGTH}
    if name == BASE:
        print(f"standard {standard_of(kept, checkpoint, **asked)['accuracy']:.1f} %")
    for row in rows:
        if not only or row.name in only:
            make = functools.partial(points, checkpoint, row, row.values, **asked)
            show(name, row, kept.once(f"{name} | {row.name} | validation", make))


@app.command("test")
def measure_chosen(
    name: Name,
    model: Model,
    adapter: Adapter = None,
    gen_length: Length = LENGTH,
    task: Task = gsm_symbolic.NAME,
    like: Like = None,
    only: Only = None,
    n: N = N_TEST,
) -> None:
    kept, checkpoint, rows = opened(name, model, adapter, gen_length, task)
    asked: dict[str, Any] = {"n": n, "split": "test", "length": gen_length, "task": task}
    if name == BASE:
        standard_of(kept, checkpoint, **asked)
    chosen = json.loads(results_of(gsm_symbolic.NAME, LENGTH).read_text())["entries"]
    reference = chosen[f"{BASE} | {STANDARD} | validation"][0]["accuracy"]

    def measured(row: Row, swept: list[dict[str, Any]]) -> list[dict[str, Any]]:
        why: dict[float, list[str]] = {row.values[0]: []} if len(row.values) == 1 else {}
        for reason, loss in LOSSES.items():
            if (point := chosen_of(swept, reference - loss)) is not None:
                why.setdefault(point["value"], []).append(reason)
        found = points(checkpoint, row, tuple(why), **asked) if why else []
        return [point | {"chosen": why[point["value"]]} for point in found]

    for row in rows:
        swept = chosen.get(f"{like or name} | {row.name} | validation")
        if swept is not None and (not only or row.name in only):
            show(name, row, kept.once(f"{name} | {row.name} | test", functools.partial(measured, row, swept)))


@app.command("report")
def report_(gen_length: Length = LENGTH, task: Task = gsm_symbolic.NAME) -> None:
    found, chosen = results_of(task, gen_length), results_of(gsm_symbolic.NAME, LENGTH)
    kept, swept = (json.loads(path.read_text())["entries"] for path in (found, chosen))
    found.with_suffix(".md").write_text(report(kept, swept))
    print(found.with_suffix(".md"))


if __name__ == "__main__":
    app()
