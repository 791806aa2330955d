"""Step 3: every policy once on the test split, with its number chosen on the validation split.

    python -m experiments.learn2pd.evaluate

Length 256: accuracy, NFE and TPF of n = 500 problems, paired with standard decoding. Length 1024: wall-clock of
standard decoding and of the fast ways, interleaved batch by batch in one process, then accuracy of n = 100.
"""

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
    MODEL,
    RESULTS,
    ROWS,
    SEED,
    Results,
    fastest,
    points,
    standard_on_validation,
    swept_on_validation,
    verdicts,
)
from experiments.policies import accuracy, draw_commit_order
from jaxdiff.checkpoint import learned_policy
from jaxdiff.cli.show import progress
from jaxdiff.decode.many import Timed, batches
from jaxdiff.metrics import aup, paired_difference
from jaxdiff.policies import Fixed, Oracle
from jaxdiff.tasks import gsm_symbolic

N, N_LONG, TIMED = 500, 100, 32  # problems at 256; at 1024 for accuracy; at 1024 for wall-clock
SHOWN = 8  # rows of the heat-map
STOPS = {
    "none": jaxdiff.NoStop(),
    "eos": EOS,
    "eotp official": jaxdiff.EotpStop(way="official"),
    "eotp block": jaxdiff.EotpStop(way="block"),
    "eotp safe": jaxdiff.EotpStop(way="safe"),
}


def main() -> None:
    checkpoint = jaxdiff.load(MODEL)
    results = Results("evaluate", checkpoint)
    policies = chosen(checkpoint, results)
    at_256(checkpoint, results, policies)
    wall_clock(checkpoint, results, policies)
    at_1024(checkpoint, results, policies)
    (RESULTS / "evaluate.md").write_text(report(results))
    draw_frontier(results, Results("fit", checkpoint))
    draw_order(checkpoint, policies)
    print(report(results))


def chosen(checkpoint: jaxdiff.Checkpoint, results: Results) -> dict[str, jaxdiff.Policy]:
    """Every policy with the number that it had its highest TPF with, no less accurate than standard on validation."""
    standard = standard_on_validation(checkpoint, results)
    policies: dict[str, jaxdiff.Policy] = {"standard": Fixed(), "oracle": Oracle()}
    for sweep in HEURISTICS:
        swept = swept_on_validation(checkpoint, results, sweep)
        point = fastest(swept, standard) or max(swept, key=lambda point: point["accuracy"])
        policies[sweep.name] = sweep.policy(np.asarray(point["value"], np.float32))
        results.once(f"{sweep.name}, chosen", lambda sweep=sweep, point=point: {sweep.number: point["value"]})
    for name in ("official", "local"):
        policies[f"learned {name}"] = learned_policy(MODEL, name)
    return policies


def at_256(checkpoint: jaxdiff.Checkpoint, results: Results, policies: dict[str, jaxdiff.Policy]) -> None:
    """All policies until the end of the text; the fast ones also over the whole canvas and with end-of-text prediction.

    Standard decoding of the whole canvas takes 256 forwards and gives the text that it gives under `eos`.
    """
    rest = [(name, stop) for name in policies if name.startswith("learned") for stop in STOPS if stop != "eos"]
    rest += [("oracle", "none"), ("threshold", "none")]
    for name, stop in [*((name, "eos") for name in policies), *rest]:
        label = f"{LENGTH}, {name}, {stop}"
        results.once(
            label,
            lambda label=label, name=name, stop=stop: points(
                checkpoint, label, lambda _: policies[name], n=N, split="test", stop=STOPS[stop]
            )[0],
        )


def wall_clock(checkpoint: jaxdiff.Checkpoint, results: Results, policies: dict[str, jaxdiff.Policy]) -> None:
    """Seconds of each way at length 1024, batch by batch in turn; a batch that was measured is kept."""
    ways = {
        "standard, none": (policies["standard"], STOPS["none"]),
        "standard, eos": (policies["standard"], EOS),
        "threshold, eos": (policies["threshold"], EOS),
        "learned official, eotp official": (policies["learned official"], STOPS["eotp official"]),
        "learned local, none": (policies["learned local"], STOPS["none"]),
        "learned local, eos": (policies["learned local"], EOS),
        "learned local, eotp safe": (policies["learned local"], STOPS["eotp safe"]),
    }
    tokenizer = checkpoint.tokenizer_for(gsm_symbolic.NAME)
    problems = list(itertools.islice(gsm_symbolic.problems("test", SEED), TIMED))
    prompts, origin = jaxdiff.pad_prompts([tokenizer.prompt(p.question) for p in problems], fill=tokenizer.eos_id)
    run = Timed()

    def measured(rows: np.ndarray) -> dict[str, Any]:
        batch: dict[str, Any] = {}
        for name, (policy, stop) in ways.items():
            before = run.seconds
            result = jaxdiff.decode(
                checkpoint.model,
                checkpoint.params,
                prompts[rows],
                origin=origin[rows],
                policy=policy,
                stop=stop,
                gen_length=LONG,
                block_length=BLOCK,
                run=run,
            )
            generated = np.asarray(result.tokens)[:, prompts.shape[1] :]
            right = [
                gsm_symbolic.verify(tokenizer.decode(ids), problems[i]) for ids, i in zip(generated, rows, strict=True)
            ]
            batch[name] = {
                "seconds": run.seconds - before,
                "nfe": int(np.sum(result.nfe)),
                "right": int(sum(right)),
                "rows": len(rows),
            }
        return batch

    with progress("wall-clock at 1024", TIMED) as update:
        for rows in batches(TIMED, ROWS):
            results.once(f"{LONG}, seconds, problems from {rows[0]}", lambda rows=rows: measured(rows))
            update(int(rows[-1]) + 1, 0, 1)


def at_1024(checkpoint: jaxdiff.Checkpoint, results: Results, policies: dict[str, jaxdiff.Policy]) -> None:
    """Accuracy at length 1024. `eos` gives standard decoding's text in a fraction of its forwards."""
    for name, stop in (
        ("standard", "eos"),
        ("threshold", "eos"),
        ("oracle", "eos"),
        ("learned official", "eotp official"),
        ("learned local", "eos"),
        ("learned local", "eotp safe"),
    ):
        label = f"{LONG}, {name}, {stop}"
        results.once(
            label,
            lambda label=label, name=name, stop=stop: points(
                checkpoint, label, lambda _: policies[name], n=N_LONG, split="test", stop=STOPS[stop], gen_length=LONG
            )[0],
        )


# --- report ---------------------------------------------------------------------------------------------------------


def report(results: Results) -> str:
    """The tables, in Markdown."""
    lines = ["# Learn2PD on gsm_symbolic, test split", "", f"Seed {SEED}; {results.content['setting']['device']}.", ""]
    for length, n in ((LENGTH, N), (LONG, N_LONG)):
        standard = results.entries[f"{length}, standard, eos"]
        lines += [
            f"## Length {length}, n = {n}",
            "",
            "| policy | stop | accuracy % | minus standard | NFE | TPF |",
            "|---|---|---:|---:|---:|---:|",
        ]
        for name, point in results.entries.items():
            if not name.startswith(f"{length}, ") or "seconds, problems" in name:
                continue
            _, policy, stop = name.split(", ")
            difference, low, high = (100 * d for d in paired_difference(verdicts(point), verdicts(standard)))
            lines.append(
                f"| {policy} | {stop} | {accuracy(point)} | {difference:+.1f} "
                f"[{low:+.1f}, {high:+.1f}] | {point['nfe']:.1f} | {point['tpf']:.2f} |"
            )
        lines.append("")
    timed = [entry for name, entry in results.entries.items() if "seconds, problems" in name]
    lines += [
        f"## Wall-clock at length {LONG}, {TIMED} problems, interleaved in batches of {ROWS}",
        "",
        "| way | seconds | faster than standard: median of the batches [least, most] | right |",
        "|---|---:|---:|---:|",
    ]
    for way in timed[0]:
        seconds = sum(batch[way]["seconds"] for batch in timed)
        ratios = [batch["standard, none"]["seconds"] / batch[way]["seconds"] for batch in timed]
        right = sum(batch[way]["right"] for batch in timed)
        lines.append(
            f"| {way} | {seconds:.1f} | {np.median(ratios):.2f}x [{min(ratios):.2f}, {max(ratios):.2f}] | "
            f"{right} of {sum(batch[way]['rows'] for batch in timed)} |"
        )
    return "\n".join(lines) + "\n"


def draw_frontier(results: Results, filters: Results) -> None:
    """Accuracy against TPF: the validation sweeps, and the test points of what was chosen."""
    figure, axis = plt.subplots(figsize=(8.4, 5.4), layout="constrained")
    fit = filters.entries
    swept = {s.name: (results.entries[f"{s.name}, validation"], s.colour, s.style) for s in HEURISTICS}
    swept["learned official"] = (fit["official, validation"], "#000000", "P-")
    locals_ = [name for name in fit if name.startswith("local") and name.endswith("validation")]
    standard = results.entries["standard, validation"]
    best = max(locals_, key=lambda name: (fastest(fit[name], standard) or {"tpf": 0.0})["tpf"])
    swept["learned local"] = (fit[best], "#d00000", "X-")
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
            origin=origin,
            policy=policies[name],
            stop=EOS,
            gen_length=LENGTH,
            block_length=BLOCK,
        )
        traces[name], lengths[name] = np.asarray(result.commit_step), np.asarray(result.lengths)
    draw_commit_order(traces, lengths, RESULTS / "commit-order.png")


if __name__ == "__main__":
    main()
