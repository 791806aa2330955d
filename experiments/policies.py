"""Accuracy, NFE and TPF of every policy on held-out word problems: one table and two pictures.

    python experiments/policies.py --stop eos --n 100

A policy's number is swept as ROWS: prompts x values, cut into batches of one shape, so that each policy is one
compiled program. Finished sweeps are kept in the JSON, and the same call made again goes on after them.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
import os
import platform
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import matplotlib.pyplot as plt
import numpy as np
import typer
from jaxtyping import Int
from matplotlib.ticker import LogLocator, MaxNLocator
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

import jaxdiff
from jaxdiff.files import replaced_file
from jaxdiff.metrics import aup, paired_difference, tpf, wilson
from jaxdiff.policies import (
    AboveMean,
    Entropy,
    EntropyBounded,
    Factor,
    Fixed,
    Margin,
    Oracle,
    Threshold,
    all_of,
    any_of,
    cap,
)
from jaxdiff.stoppers import STOPPERS, Eos
from jaxdiff.tasks import evaluate, gsm_symbolic

GEN_LENGTH, BLOCK_LENGTH = 256, 32
ROWS = 4  # per batch: a batch runs until its slowest row ends, and on CPU a row costs least in small batches
CLOSE = 2.0  # points below standard decoding that the summary's fastest setting may lose

STEPS = (32, 16, 8, 4, 2, 1)  # per block of 32: 1, 2, 4, 8, 16, 32 tokens a step
EIGHT = STEPS.index(BLOCK_LENGTH // 8)  # 8 tokens a step
TAUS = (0.999, 0.99, 0.97, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.5)
FACTORS = (0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0)
MARGINS = (0.999, 0.99, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
ENTROPIES = (0.005, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 0.9, 1.1, 1.4)
GAMMAS = (0.001, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.8, 1.2, 1.8, 2.5, 4.0)
FEW = (0.97, 0.9, 0.8, 0.6)  # the combinations' tau
SHOWN, SHOWN_TAU = 8, 0.9  # problems and threshold of the commit-order picture


@dataclasses.dataclass(frozen=True)
class Sweep:
    """One policy and the values of its number, from careful to fast."""

    name: str
    number: str  # what the values are; "" for a policy without a number
    values: tuple[float, ...]
    policy: Callable[[np.ndarray], jaxdiff.Policy]  # from one value for each row of a batch
    colour: str
    style: str  # marker and line


# Okabe and Ito's palette; the schedules in greys, the combinations dotted.
SWEEPS = (
    Sweep("fixed, confidence", "steps", STEPS, lambda v: Fixed(steps=v), "#000000", "o-"),
    Sweep("fixed, margin", "steps", STEPS, lambda v: Fixed(steps=v, order="margin"), "#555555", "v--"),
    Sweep("fixed, entropy", "steps", STEPS, lambda v: Fixed(steps=v, order="entropy"), "#888888", "^--"),
    Sweep("fixed, random", "steps", STEPS, lambda v: Fixed(steps=v, order="random"), "#bbbbbb", "x--"),
    Sweep("threshold", "tau", TAUS, lambda v: Threshold(tau=v), "#0072b2", "o-"),
    Sweep("factor", "f", FACTORS, lambda v: Factor(f=v), "#d55e00", "s-"),
    Sweep("margin", "tau", MARGINS, lambda v: Margin(tau=v), "#009e73", "v-"),
    Sweep("entropy", "tau", ENTROPIES, lambda v: Entropy(tau=v), "#cc79a7", "^-"),
    Sweep("entropy bounded", "gamma", GAMMAS, lambda v: EntropyBounded(gamma=v), "#e69f00", "D-"),
    Sweep("above mean", "", (0.0,), lambda v: AboveMean(), "#56b4e9", "*"),
    Sweep("oracle", "", (0.0,), lambda v: Oracle(), "#000000", "*"),
    Sweep(
        "any of threshold, fixed 16 steps",
        "tau",
        FEW,
        lambda v: any_of(Threshold(tau=v), Fixed(steps=16)),
        "#0072b2",
        "P:",
    ),
    Sweep(
        "all of threshold, entropy <= 0.3",
        "tau",
        FEW,
        lambda v: all_of(Threshold(tau=v), Entropy(tau=0.3)),
        "#cc79a7",
        "X:",
    ),
    Sweep("cap 4, threshold", "tau", FEW, lambda v: cap(4, Threshold(tau=v)), "#56b4e9", "d:"),
)


def decoder_of(
    policy: Callable[[np.ndarray], jaxdiff.Policy],
    stop: jaxdiff.Stopper,
    values: np.ndarray,
    block_length: int = BLOCK_LENGTH,
) -> jaxdiff.Decoder:
    """What a batch is decoded with, from its rows' values of the policy's number."""
    return jaxdiff.Decoder(policy=policy(values), stop=stop, block_length=block_length)


# --- tables ---------------------------------------------------------------------------------------------------------


def measure(values: Sequence[float], reports: Sequence[evaluate.Report]) -> list[dict[str, Any]]:
    """One point of the frontier for each value."""
    return [
        {
            "value": value,
            "accuracy": 100 * report.correct.mean(),
            "interval": [100 * end for end in wilson(int(report.correct.sum()), report.correct.size)],
            "nfe": float(report.nfe.mean()),
            "tpf": tpf(report.lengths, report.nfe),
            "near_ties": int(report.near_ties.sum()),
            "correct": "".join(map(str, report.correct.astype(int))),
        }
        for value, report in zip(values, reports, strict=True)
    ]


def compare(results: dict[str, Any]) -> None:
    """Add what needs more than one sweep: the AUP scores and the paired differences from standard decoding."""
    sweeps = results["sweeps"]
    standard = verdicts_of(sweeps[SWEEPS[0].name]["points"][0])
    best = max(point["accuracy"] for sweep in sweeps.values() for point in sweep["points"])
    for sweep in sweeps.values():
        sweep["aup"] = aup([(point["tpf"], point["accuracy"]) for point in sweep["points"]], best)
        for point in sweep["points"]:
            point["against_standard"] = [100 * d for d in paired_difference(verdicts_of(point), standard)]
    eight = sweeps[SWEEPS[0].name]["points"][EIGHT]
    results["eight_tokens_a_step_against_one"] = eight["against_standard"]


def verdicts_of(point: dict[str, Any]) -> np.ndarray:
    return np.asarray([mark == "1" for mark in point["correct"]])


def markdown(results: dict[str, Any]) -> str:
    """The report: how it was made, the summary of the policies, then every point."""
    setting, sweeps = results["setting"], results["sweeps"]
    standard = sweeps[SWEEPS[0].name]["points"][0]
    difference, low, high = results["eight_tokens_a_step_against_one"]
    lines = [
        f"# Policies on {setting['task']}, stop `{setting['stop']}`",
        "",
        f"n = {setting['n']} {setting['split']} problems, seed {setting['seed']}, model `{setting['model']}` (weights "
        f"{setting['weights']}), generation {GEN_LENGTH}, block {BLOCK_LENGTH}, temperature 0. "
        f"{results['seconds']:.0f} s of decoding and {results['compile_seconds']:.0f} s of compiling on "
        f"{setting['device']}.",
        "",
        "Brackets: 95 % intervals (Wilson; differences paired, Newcombe). NFE: mean forwards per problem. TPF: tokens "
        "through the first end-of-text per forward. AUP: d3LLM's area under the frontier.",
        "",
        f"Standard decoding, one token a step, most confident first: {accuracy(standard)} % at TPF "
        f"{standard['tpf']:.2f}. Committing 8 tokens a step changes that by **{difference:+.1f} points** "
        f"[{low:+.1f}, {high:+.1f}].",
        "",
        f"| policy | AUP | best accuracy % | fastest within {CLOSE:g} points of standard | its TPF | its accuracy % |",
        "|---|---:|---:|---|---:|---:|",
    ]
    for sweep in SWEEPS:
        points = sweeps[sweep.name]["points"]
        close = [point for point in points if point["accuracy"] >= standard["accuracy"] - CLOSE]
        best = max(point["accuracy"] for point in points)
        row = f"| {sweep.name} | {sweeps[sweep.name]['aup']:.1f} | {best:.1f} |"
        if close:
            fastest = max(close, key=lambda point: point["tpf"])
            row += f" {label(sweep, fastest)} | {fastest['tpf']:.2f} | {fastest['accuracy']:.1f} |"
        else:
            row += " none | | |"
        lines.append(row)
    lines += ["", "| policy | number | accuracy % | minus standard | NFE | TPF |", "|---|---|---:|---:|---:|---:|"]
    for sweep in SWEEPS:
        for point in sweeps[sweep.name]["points"]:
            difference, low, high = point["against_standard"]
            lines.append(
                f"| {sweep.name} | {label(sweep, point)} | {accuracy(point)} | {difference:+.1f} [{low:+.1f}, "
                f"{high:+.1f}] | {point['nfe']:.1f} | {point['tpf']:.2f} |"
            )
    return "\n".join(lines) + "\n"


def accuracy(point: dict[str, Any]) -> str:
    return "{:.1f} [{:.1f}, {:.1f}]".format(point["accuracy"], *point["interval"])


def label(sweep: Sweep, point: dict[str, Any]) -> str:
    return f"{sweep.number} = {point['value']:g}" if sweep.number else "-"


# --- pictures -------------------------------------------------------------------------------------------------------


def draw_frontiers(results: dict[str, Any], path: Path) -> None:
    """Accuracy against TPF: all points on the left, on the right those near standard decoding."""
    standard = results["sweeps"][SWEEPS[0].name]["points"][0]
    figure, axes = plt.subplots(1, 2, figsize=(13, 5.6), layout="constrained", width_ratios=(1, 1))
    for axis in axes:
        axis.axhspan(*standard["interval"], color="#000000", alpha=0.06, lw=0)
        axis.axhline(standard["accuracy"], color="#000000", lw=0.8, alpha=0.5)
        for sweep in SWEEPS:
            points = sorted(results["sweeps"][sweep.name]["points"], key=lambda point: point["tpf"])
            axis.plot(
                [point["tpf"] for point in points],
                [point["accuracy"] for point in points],
                sweep.style,
                color=sweep.colour,
                label=sweep.name,
                markersize=13 if sweep.style == "*" else 5.5,
                lw=1.5,
            )
        axis.plot(
            standard["tpf"],
            standard["accuracy"],
            "o",
            mfc="none",
            mec="#d55e00",
            mew=2,
            ms=14,
            label="standard decoding",
        )
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.set_xlabel("TPF (tokens per forward, log scale)", fontsize=12)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=11)
    every = [point for sweep in results["sweeps"].values() for point in sweep["points"]]
    floor = standard["accuracy"] - 20
    near = [point["tpf"] for point in every if point["accuracy"] >= floor]
    eight = results["sweeps"][SWEEPS[0].name]["points"][EIGHT]
    axes[0].annotate(
        "8 tokens a step", (eight["tpf"], eight["accuracy"]), (8, 4), textcoords="offset points", fontsize=11
    )
    axes[0].set_ylim(-3, 103)
    axes[1].xaxis.set_major_locator(LogLocator(base=2, subs=(1.0, 1.5)))
    axes[1].set_ylim(floor, max(point["accuracy"] for point in every) + 2)
    axes[1].set_xlim(min(near) / 1.1, max(near) * 1.1)
    axes[0].set_ylabel("accuracy (%)", fontsize=12)
    axes[0].set_title("every point", fontsize=12)
    axes[1].set_title("at most 20 points below standard decoding", fontsize=12)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=10.5)
    setting = results["setting"]
    figure.suptitle(
        f"{setting['task']}, {setting['n']} held-out problems, stop {setting['stop']}; grey band: 95 % interval of "
        "standard decoding",
        fontsize=12,
    )
    figure.savefig(path, dpi=150)
    plt.close(figure)


def draw_commit_order(traces: dict[str, Int[np.ndarray, "n G"]], lengths: dict[str, np.ndarray], path: Path) -> None:
    """Which forward committed each position of a few answers, through their first end-of-text."""
    figure, axes = plt.subplots(len(traces), 1, figsize=(11, 2.9 * len(traces)), layout="constrained", sharex=True)
    widest = max(int(length.max()) for length in lengths.values())
    for axis, (name, trace) in zip(axes, traces.items(), strict=True):
        past = np.arange(trace.shape[1])[None] >= lengths[name][:, None]
        shown = np.ma.masked_where(past, trace)[:, :widest]
        image = axis.imshow(shown, aspect="auto", cmap="cividis", interpolation="nearest")
        for block in range(BLOCK_LENGTH, widest, BLOCK_LENGTH):
            axis.axvline(block - 0.5, color="white", lw=1.5)
        axis.set_title(name, fontsize=12, loc="left")
        axis.set_ylabel("problem", fontsize=11)
        axis.set_yticks(range(len(shown)), range(1, len(shown) + 1))
        figure.colorbar(image, ax=axis, pad=0.01, ticks=MaxNLocator(5, integer=True)).set_label(
            "commit step", fontsize=11
        )
    axes[-1].set_xlabel("position in the answer (white lines: blocks)", fontsize=11)
    figure.savefig(path, dpi=150)
    plt.close(figure)


# --- main -----------------------------------------------------------------------------------------------------------


def describe(checkpoint: jaxdiff.Checkpoint, model: str, n: int, stop: str, seed: int) -> dict[str, Any]:
    """All that a point depends on; sweeps of an earlier call are kept only where all of it agrees."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(jax.device_get(checkpoint.params)):
        digest.update(leaf.tobytes())
    return {
        "model": model,
        "weights": digest.hexdigest()[:12],
        "task": gsm_symbolic.NAME,
        "split": "test",
        "seed": seed,
        "n": n,
        "stop": stop,
        "gen_length": GEN_LENGTH,
        "block_length": BLOCK_LENGTH,
        "temperature": 0.0,
        "device": f"{jax.devices()[0].device_kind} ({platform.machine()}, {os.cpu_count()} cores)",
        "versions": {"jaxdiff": jaxdiff.__version__} | {name: version(name) for name in ("jax", "flax", "numpy")},
    }


def resume(path: Path, setting: dict[str, Any]) -> dict[str, Any]:
    """The sweeps that an earlier call with the same setting finished, where their values are still the same."""
    results: dict[str, Any] = {"setting": setting, "sweeps": {}}
    if path.is_file() and (earlier := json.loads(path.read_text()))["setting"] == setting:
        values = {sweep.name: list(sweep.values) for sweep in SWEEPS}
        for name, kept in earlier["sweeps"].items():
            if [point["value"] for point in kept["points"]] == values.get(name):
                results["sweeps"][name] = kept
    return results


def write(path: Path, results: dict[str, Any]) -> None:
    """Whole or not at all."""
    for clock in ("seconds", "compile_seconds"):
        results[clock] = sum(sweep[clock] for sweep in results["sweeps"].values())
    with replaced_file(path) as new:
        new.write_text(json.dumps(results, indent=1) + "\n")


def main(
    n: Annotated[int, typer.Option(min=1, help="problems, the same for every point")] = 100,
    stop: Annotated[Literal["eos", "none"], typer.Option(help="stopper")] = "eos",
    seed: Annotated[int, typer.Option(help="of the problems and of random orders")] = 0,
    model: Annotated[str, typer.Option(help="model folder, or the name of a shipped model")] = "gsm-1m",
    out: Annotated[Path, typer.Option(help="folder of the results")] = Path(__file__).parent / "results",
) -> None:
    """Sweep every policy; write policies-STOP.json, .md and .png and commit-order-STOP.png; print the table."""
    try:
        checkpoint = jaxdiff.load(model)
        tokenizer = checkpoint.tokenizer_for(gsm_symbolic.NAME)
    except jaxdiff.InputError as error:
        sys.exit(f"error: {error}")
    stopper = STOPPERS.parse(stop)

    out.mkdir(parents=True, exist_ok=True)
    path = out / f"policies-{stop}.json"
    results = resume(path, describe(checkpoint, model, n, stop, seed))
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()]
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        left = [sweep for sweep in SWEEPS if sweep.name not in results["sweeps"]]
        rows = bar.add_task("", total=n * sum(len(sweep.values) for sweep in left))
        for sweep in left:
            bar.update(rows, description=sweep.name)
            before = bar.tasks[rows].completed
            reports = evaluate.sweep(
                checkpoint,
                gsm_symbolic.NAME,
                functools.partial(decoder_of, sweep.policy, stopper),
                sweep.values,
                n=n,
                seed=seed,
                batch_size=ROWS,
                gen_length=GEN_LENGTH,
                progress=lambda done, *_: bar.update(rows, completed=before + done),  # noqa: B023
            )
            results["sweeps"][sweep.name] = {
                "number": sweep.number,
                "points": measure(sweep.values, reports),
                "seconds": sum(report.seconds for report in reports),
                "compile_seconds": reports[0].compile_seconds,
            }
            write(path, results)

    compare(results)
    write(path, results)
    table = markdown(results)
    path.with_suffix(".md").write_text(table)
    draw_frontiers(results, path.with_suffix(".png"))

    problems = sorted(itertools.islice(gsm_symbolic.problems("test", seed), n), key=lambda p: len(p.worked))
    few = [problems[i] for i in np.linspace(0, n - 1, min(SHOWN, n)).astype(int)]  # from short answers to long ones
    prompts, origin = jaxdiff.pad_prompts([tokenizer.prompt(p.question) for p in few], fill=tokenizer.eos_id)
    shown = {"standard: one token a step": Fixed(), f"threshold, tau = {SHOWN_TAU:g}": Threshold(tau=SHOWN_TAU)}
    traces, lengths = {}, {}
    for name, policy in shown.items():
        result = jaxdiff.decode(
            checkpoint.model,
            checkpoint.params,
            prompts,
            # Eos: the same commits through the first end-of-text as without it
            jaxdiff.Decoder(policy=policy, stop=Eos(), block_length=BLOCK_LENGTH),
            origin=origin,
            gen_length=GEN_LENGTH,
        )
        traces[name], lengths[name] = np.asarray(result.commit_step), np.asarray(result.lengths)
    draw_commit_order(traces, lengths, out / f"commit-order-{stop}.png")
    print(table)


if __name__ == "__main__":
    typer.run(main)
