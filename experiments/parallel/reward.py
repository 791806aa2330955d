"""Frontiers of filters for the frozen base: fitted to traces, and then to rewards.

    python -m experiments.parallel.reward MODEL local=0.7,0.85,0.93 outcome=0.7,0.85,0.93

MODEL: a copy of `gsm-1m` with filters of these names in its `filters` (README.md says how they were fitted). Each is
measured at each threshold on 500 validation problems; `results/reward.json` has the points with their verdicts,
`results/reward.md` is the table.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Annotated, Any

import typer

import jaxdiff
from experiments.kept import Kept
from experiments.parallel.run import BASE, LENGTH, N_CHOOSE, RESULTS, SEED, Row, points
from experiments.policies import accuracy, describe
from jaxdiff.files import replaced_file
from jaxdiff.filters import named_filter

PATH = RESULTS / "reward.json"


def report(entries: dict[str, Any]) -> str:
    """Every filter's points, in the order in which they were measured."""
    lines = [
        f"Validation, n {N_CHOOSE}, length {LENGTH}, stop `eos`. Brackets: 95 % intervals (Wilson).",
        "",
        "| filter | tau | accuracy % | NFE | TPF | work |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, swept in entries.items():
        lines += [
            f"| {name} | {point['value']:g} | {accuracy(point)} | {point['nfe']:.2f} | {point['tpf']:.2f} | "
            f"{point['work']:.2f} |"
            for point in swept
        ]
    return "\n".join(lines) + "\n"


def main(
    model: Annotated[str, typer.Argument(help="A folder with the filters.")],
    filters: Annotated[list[str], typer.Argument(help="NAME=TAU,TAU,...")],
) -> None:
    checkpoint = jaxdiff.load(model)
    kept = Kept(PATH, describe(checkpoint, BASE, N_CHOOSE, "eos", SEED))
    for each in filters:
        name, _, given = each.partition("=")
        taus = tuple(float(tau) for tau in given.split(","))
        learned, _ = named_filter(model, name)
        row = Row(name, taus, functools.partial(_at, learned))
        make = functools.partial(points, checkpoint, row, taus, n=N_CHOOSE, split="validation", length=LENGTH)
        for point in kept.once(name, make):
            print(f"{name} {point['value']:g}: {accuracy(point)} %, TPF {point['tpf']:.2f}", flush=True)
    with replaced_file(PATH.with_suffix(".md")) as new:
        new.write_text(report(kept.entries))


def _at(learned: jaxdiff.policies.Learned, tau: Any) -> jaxdiff.Policy:
    return dataclasses.replace(learned, tau=tau)


if __name__ == "__main__":
    typer.run(main)
