"""What step 3 measured, as tables in Markdown and as pictures."""

from __future__ import annotations

import itertools
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

import jaxdiff
from experiments.learn2pd.common import (
    BLOCK,
    EOS,
    HEURISTICS,
    LENGTH,
    LONG,
    RESULTS,
    ROWS,
    SEED,
    N,
    Results,
    chosen_of,
)
from experiments.policies import accuracy, draw_commit_order, verdicts_of
from jaxdiff.metrics import aup, paired_difference, tpf, wilson
from jaxdiff.tasks import gsm_symbolic

SHOWN = 8  # rows of the heat-map


def report(results: Results) -> str:
    """All tables, in Markdown."""
    lines = ["# Learn2PD on gsm_symbolic, test split", "", f"Seed {SEED}; {results.content['setting']['device']}.", ""]
    lines += [
        "Brackets: 95 % intervals (Wilson; differences paired by problem, Newcombe). TPF: tokens through the first "
        "end-of-text per forward. Numbers of the policies were chosen on 100 validation problems; of learned local on "
        "1,000, and at length 1024 on 100 of that length.",
        "",
    ]
    lines += _targets(results) + _accuracies(results) + _long(results)
    return "\n".join(lines) + "\n"


def _targets(results: Results) -> list[str]:
    """What the papers reached and this experiment aims at, and what was measured."""
    at = results.entries
    standard, oracle = at[f"{LENGTH}, standard, eos"], at[f"{LENGTH}, oracle, eos"]
    official, local = at[f"{LENGTH}, learned official, eos"], at[f"{LENGTH}, learned local, eos"]
    best = rival_of(results)
    rival = at[f"{LENGTH}, {best}, eos"]
    closed = (local["tpf"] - rival["tpf"]) / (oracle["tpf"] - rival["tpf"])
    cuts = standard["nfe"] / official["nfe"], LENGTH / at[f"{LENGTH}, learned official, none"]["nfe"]
    long, safe, frozen = (
        _point(results, way)
        for way in ("standard, eos, none", "learned local, eotp safe, none", "learned local, eotp safe, frozen")
    )
    d, e, stopping = (
        _speed(results, way)
        for way in (
            "learned local, eotp safe, none",
            "learned local, eotp safe, frozen",
            "standard, eotp safe, none",
        )
    )
    over = _speed(results, "learned local, eotp safe, none", "threshold, eos, none")
    count = len(long["correct"])
    shares = [np.log(np.median(stopping)) / np.log(np.median(whole)) for whole in (d, e)]
    rows = [
        (
            "a",
            f"learned official at {LENGTH}, n {N}: accuracy minus standard",
            "over -1, low over -3",
            _minus(official, standard),
        ),
        ("a", "its NFE cut, until end-of-text; of the whole canvas", "4.2x", f"{cuts[0]:.1f}x; {cuts[1]:.1f}x"),
        (
            "b",
            f"learned local against {best}, the fastest heuristic on validation: TPF",
            "1.3x",
            f"{local['tpf']:.2f} / {rival['tpf']:.2f} = {local['tpf'] / rival['tpf']:.2f}x",
        ),
        ("b", "its accuracy minus that", "not lower", _minus(local, rival)),
        (
            "b",
            "or: share closed of the gap to the oracle",
            "60 %",
            f"{100 * closed:.0f} % (oracle {oracle['tpf']:.2f})",
        ),
        ("c", "learned local: NFE over the oracle's", "1.5x", f"{local['nfe'] / oracle['nfe']:.2f}x"),
        ("d", f"at {LONG}: learned local, eotp safe, no cache, seconds against standard", "22.58x", _times(d)),
        ("d", f"its accuracy minus standard, n {count}", "over -1", _minus(safe, long)),
        ("d", "against threshold, eos", "1.5x", _times(over)),
        ("e", "the same with the frozen cache, against standard without one", "57.51x", _times(e)),
        ("e", f"its accuracy minus standard, n {count}", "over -1", _minus(frozen, long)),
        ("f", "standard, eotp safe: what stopping alone gives", "-", _times(stopping)),
        ("f", "its share of the logarithm of d; of e", "-", " %; ".join(f"{100 * x:.0f}" for x in shares) + " %"),
    ]
    for name in ("local", "official"):
        spent = at[f"cost, learned {name}"]
        share = 100 * spent["share of the step"]["median"]
        what = f"{share:.2f} % ({spent['microseconds']:.0f} us, {spent['parameters']:,} parameters)"
        rows.append(("g", f"learned {name}: the filter's share of a step, batch 1", "under 1 %", what))
    lines = ["## Targets", "", "Accuracy in points, paired, with 95 % intervals; times faster: the median of the timed"]
    lines += [
        "batches, and the least and most of them.",
        "",
        "| | measure | target | measured |",
        "|---|---|---:|---:|",
    ]
    return [*lines, *("| " + " | ".join(row) + " |" for row in rows), ""]


def rival_of(results: Results) -> str:
    """The heuristic that was fastest on the validation problems, of those no less accurate than standard there."""
    standard = results.entries["standard, validation"]
    points = {s.name: chosen_of(results.entries[f"{s.name}, validation"], standard) for s in HEURISTICS}
    return max(points, key=lambda name: (points[name]["accuracy"] >= standard["accuracy"], points[name]["tpf"]))


def _minus(point: dict, other: dict) -> str:
    difference, low, high = (100 * d for d in paired_difference(verdicts_of(point), verdicts_of(other)))
    return f"{difference:+.1f} [{low:+.1f}, {high:+.1f}]"


def _batches(results: Results, way: str) -> list[dict]:
    """What a way gave at 1024, batch by batch; without a stopper only the timed ones."""
    return [batch[way] for batch in _every_batch(results) if way in batch]


def _every_batch(results: Results) -> list[dict]:
    """In the order of the problems, whatever the order that they were measured in: the timed ones are the first."""
    prefix = f"{LONG}, problems from "
    found = {
        int(name.removeprefix(prefix)): batch for name, batch in results.entries.items() if name.startswith(prefix)
    }
    return [found[start] for start in sorted(found)]


def _point(results: Results, way: str) -> dict[str, Any]:
    """The same as one point, as `points` gives them at 256."""
    batches = _batches(results, way)
    nfe, lengths = (np.concatenate([batch[what] for batch in batches]) for what in ("nfe", "lengths"))
    correct = "".join(batch["correct"] for batch in batches)
    right = correct.count("1")
    return {
        "accuracy": 100 * right / len(correct),
        "interval": [100 * end for end in wilson(right, len(correct))],
        "nfe": float(nfe.mean()),
        "tpf": tpf(lengths, nfe),
        "correct": correct,
    }


def _speed(results: Results, way: str, against: str = "standard, none, none") -> list[float]:
    """How many times faster, batch by batch of the timed problems: both ways ran in the same turn."""
    timed = [batch for batch in _every_batch(results) if "standard, none, none" in batch]
    return [batch[against]["seconds"] / batch[way]["seconds"] for batch in timed]


def _times(ratios: list[float]) -> str:
    return f"{np.median(ratios):.2f}x [{min(ratios):.2f}, {max(ratios):.2f}]"


def _accuracies(results: Results) -> list[str]:
    standard = results.entries[f"{LENGTH}, standard, eos"]
    lines = [f"## Length {LENGTH}, n = {N}", "", "| policy | stop | accuracy % | minus standard | NFE | TPF |"]
    lines.append("|---|---|---:|---:|---:|---:|")
    for name, point in results.entries.items():
        if name.startswith(f"{LENGTH}, "):
            _, policy, stop = name.split(", ")
            lines.append(f"| {policy} | {stop} | {_numbers(point, standard)} |")
    return [*lines, ""]


def _numbers(point: dict, standard: dict) -> str:
    return f"{accuracy(point)} | {_minus(point, standard)} | {point['nfe']:.1f} | {point['tpf']:.2f}"


def _long(results: Results) -> list[str]:
    standard = _point(results, "standard, eos, none")
    timed = len(_batches(results, "standard, none, none"))
    lines = [
        f"## Length {LONG}",
        "",
        f"Accuracy, NFE and TPF of {len(standard['correct'])} problems ({timed * ROWS} where nothing stops); seconds "
        f"of the first {timed * ROWS}, in batches of {ROWS}, all ways in turn.",
        "",
        "| policy, stop, cache | accuracy % | minus standard | NFE | TPF | seconds | times faster than standard, none: "
        "median of the batches [least, most] |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for way in _every_batch(results)[0]:
        point = _point(results, way)
        other = standard | {"correct": standard["correct"][: len(point["correct"])]}
        seconds = sum(batch["seconds"] for batch in _batches(results, way)[:timed])
        lines.append(f"| {way} | {_numbers(point, other)} | {seconds:.1f} | {_times(_speed(results, way))} |")
    return [*lines, ""]


def draw_frontier(results: Results, filters: Results) -> None:
    """Accuracy against TPF: the validation sweeps, the oracle (test), standard decoding as a line."""
    figure, axis = plt.subplots(figsize=(8.4, 5.4), layout="constrained")
    fit = filters.entries
    swept = {s.name: (results.entries[f"{s.name}, validation"], s.colour, s.style) for s in HEURISTICS}
    standard = results.entries["standard, validation"]
    for family, colour, style in (("official", "#000000", "P-"), ("local", "#d00000", "X-")):
        swept[f"learned {family}"] = (fit[f"{filters.content['chosen'][family]}, validation"], colour, style)
    top = max(point["accuracy"] for curve, _, _ in swept.values() for point in curve)
    for name, (curve, colour, style) in swept.items():
        ordered = sorted(curve, key=lambda point: point["tpf"])
        score = aup([(point["tpf"], point["accuracy"]) for point in ordered], top)
        axis.plot(
            [point["tpf"] for point in ordered],
            [point["accuracy"] for point in ordered],
            style,
            color=colour,
            ms=5,
            label=f"{name} (AUP {score:.0f})",
        )
    axis.axhline(standard["accuracy"], color="#000000", lw=0.8, alpha=0.5)
    oracle = results.entries[f"{LENGTH}, oracle, eos"]
    axis.plot(oracle["tpf"], oracle["accuracy"], "*", color="#000000", ms=14, label="oracle (test)")
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_xlabel("TPF (tokens per forward, log scale)")
    axis.set_ylabel("accuracy (%)")
    axis.set_ylim(standard["accuracy"] - 30, None)
    axis.set_title("validation problems, stop eos; line: standard decoding", fontsize=11)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, loc="lower left")
    figure.savefig(RESULTS / "frontier.png", dpi=150)
    plt.close(figure)


def draw_order(checkpoint: jaxdiff.Checkpoint, policies: dict[str, jaxdiff.Policy]) -> None:
    """Which forward committed each position, with the filter and without."""
    tokenizer = checkpoint.tokenizer_for(gsm_symbolic.NAME)
    problems = itertools.islice(gsm_symbolic.problems("test", SEED), SHOWN)
    prompts, origin = jaxdiff.pad_prompts([tokenizer.prompt(p.question) for p in problems], fill=tokenizer.eos_id)
    traces, lengths = {}, {}
    for name in ("standard", "learned official", "learned local"):
        result = jaxdiff.decode(
            checkpoint.model,
            checkpoint.params,
            prompts,
            jaxdiff.Decoder(policy=policies[name], stop=EOS, block_length=BLOCK),
            origin=origin,
            gen_length=LENGTH,
        )
        traces[name], lengths[name] = np.asarray(result.commit_step), np.asarray(result.lengths)
    draw_commit_order(traces, lengths, RESULTS / "commit-order.png")
