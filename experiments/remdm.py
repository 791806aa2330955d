"""Does taking commits back pay? ReMDM's schedules beside schedules and a threshold that never do.

    python experiments/remdm.py

Test problems, the model that ships, stop `eos`, greedy. A remasking policy always takes all the
steps of a block, so that `fixed` with as many steps is its equal in forwards; with 32 it commits one token a step.
The numbers of one policy (caps, say) are rows of one compiled program. Each policy, number of steps and temperature is
kept in the JSON when it is done, and the same call made again goes on after them. Writes results/remdm.json and .md.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

import jaxdiff
from experiments.kept import Kept
from experiments.policies import BLOCK_LENGTH, GEN_LENGTH, accuracy, describe, measure, verdicts_of
from jaxdiff.checkpoint import SHIPPED
from jaxdiff.cli.show import progress
from jaxdiff.metrics import paired_difference
from jaxdiff.policies import Fixed, RemdmCap, RemdmLoop, RemdmRescale, Threshold
from jaxdiff.stoppers import Eos
from jaxdiff.tasks import evaluate, gsm_symbolic

N, ROWS, SEED = 100, 16, 0
TEMPERATURES = (0.0,)
STEPS = (8, 16)  # of a block of 32
RESULTS = Path(__file__).parent / "results"


@dataclasses.dataclass(frozen=True)
class Way:
    """One policy, the values of its number, and how many steps a block may have."""

    name: str
    number: str  # what the values are; "" for a policy without a number
    values: tuple[float, ...]
    policy: Callable[[int, np.ndarray], jaxdiff.Policy]  # from the steps, and one value for each row of a batch
    steps: tuple[int, ...] = STEPS


WAYS = (
    Way("fixed", "", (0.0,), lambda steps, v: Fixed(steps=steps), steps=(*STEPS, BLOCK_LENGTH)),
    Way("threshold", "tau", (0.9,), lambda steps, v: Threshold(tau=v), steps=(0,)),  # 0: as many as it takes
    Way("remdm cap", "cap", (0.008, 0.05), lambda steps, v: RemdmCap(steps=steps, cap=v)),
    Way("remdm rescale", "rescale", (0.015,), lambda steps, v: RemdmRescale(steps=steps, rescale=v), steps=STEPS[:1]),
    Way("remdm loop", "loop", (0.02,), lambda steps, v: RemdmLoop(steps=steps, loop=v), steps=STEPS[:1]),
)


def entry(way: Way, steps: int, temperature: float) -> str:
    return f"{way.name}, {steps or 'free'} steps, temperature {temperature:g}"


def points(checkpoint: jaxdiff.Checkpoint, way: Way, steps: int, temperature: float, n: int) -> list[dict[str, Any]]:
    """One point for each value of the way's number."""

    def decoder(values: np.ndarray) -> jaxdiff.Decoder:
        return jaxdiff.Decoder(
            policy=way.policy(steps, values),
            stop=Eos(),
            sampling=jaxdiff.Sampling(temperature=temperature),
            block_length=BLOCK_LENGTH,
        )

    with progress(entry(way, steps, temperature), n * len(way.values)) as update:
        reports = evaluate.sweep(
            checkpoint,
            gsm_symbolic.NAME,
            decoder,
            way.values,
            n=n,
            seed=SEED,
            batch_size=ROWS,
            gen_length=GEN_LENGTH,
            progress=update,
        )
    return [
        {"policy": way.name, "number": way.number, "steps": steps, "temperature": temperature, "n": n}
        | point
        | {
            "work": float(report.work.mean()),
        }
        for point, report in zip(measure(way.values, reports), reports, strict=True)
    ]


def markdown(results: Kept) -> str:
    setting = results.content["setting"]
    lines = [
        "# Remasking",
        "",
        f"    python experiments/remdm.py --n {setting['n']}",
        "",
        f"n = {setting['n']} {setting['split']} problems of {setting['task']}, seed {setting['seed']}, model "
        f"`{setting['model']}` (weights {setting['weights']}), generation {GEN_LENGTH}, block {BLOCK_LENGTH}, stop "
        f"eos, batches of {ROWS}; {setting['device']}.",
        "",
        "Steps: of a block. Brackets: 95 % intervals (Wilson; the difference from one token a step at the same "
        "temperature paired, Newcombe). NFE and work: means per problem; work in forwards over the row's canvas. TPF: "
        "tokens through the first end-of-text per forward. Not timed: other work shared the machine.",
        "",
        "| policy | number | steps | temperature | accuracy % | minus one a step | NFE | work | TPF |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for temperature in TEMPERATURES:
        (standard,) = results.entries[entry(WAYS[0], BLOCK_LENGTH, temperature)]
        for way in WAYS:
            for steps in way.steps:
                for point in results.entries[entry(way, steps, temperature)]:
                    difference = paired_difference(verdicts_of(point), verdicts_of(standard))
                    number = f"{way.number} = {point['value']:g}" if way.number else "-"
                    lines.append(
                        f"| {way.name} | {number} | {steps or '-'} | {temperature:g} | {accuracy(point)} | "
                        + "{:+.1f} [{:+.1f}, {:+.1f}]".format(*(100 * d for d in difference))
                        + f" | {point['nfe']:.1f} | {point['work']:.1f} | {point['tpf']:.2f} |"
                    )
    return "\n".join(lines) + "\n"


def main(
    n: Annotated[int, typer.Option(min=1, help="Test problems, the same for every point.")] = N,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = RESULTS,
) -> None:
    checkpoint = jaxdiff.load(SHIPPED)
    setting = describe(checkpoint, SHIPPED, n, "eos", SEED) | {"temperature": list(TEMPERATURES), "batch_size": ROWS}
    results = Kept(out / "remdm.json", setting)
    for temperature in TEMPERATURES:
        for way in WAYS:
            for steps in way.steps:
                make = functools.partial(points, checkpoint, way, steps, temperature, n)
                results.once(entry(way, steps, temperature), make)
    table = markdown(results)
    (out / "remdm.md").write_text(table)
    print(table)


if __name__ == "__main__":
    typer.run(main)
