r"""Does it pay to take back what a judge doubts? `python -m experiments.judge.run [choose|test|calibrate|report]`

    jaxdiff collect --out runs/rash --n 3000 --seed 1000 --stop eos --batch-size 32 --answer threshold:tau=0.99 \
        --features --rash learned:tau=0.5 --rash learned:tau=0.7 --rash threshold:tau=0.6
    jaxdiff fit --kind judge --name judge --traces runs/rash --model MODEL
    python -m experiments.judge.run choose MODEL
    python -m experiments.judge.run test MODEL
    python -m experiments.judge.run calibrate MODEL
    python -m experiments.judge.run report

choose     `learned` at rash thresholds alone, with the judge, and with what it is compared with: random remasking,
           remasking by the commit's own confidence, and an oracle that takes back exactly what is not the standard
           decode's. Validation problems. Of each kind two are chosen: the fastest that loses at most a point of
           standard decoding, and the most accurate that does no more work than `threshold:tau=0.99`.
test       What was chosen, once, on test problems, paired with standard decoding.
calibrate  The judge on rash decodes of test problems: area under the ROC curve, and how often it is right in each tenth
           of what it says; `results/calibration.png`.

MODEL is a copy of `gsm-1m` with the judge in its `judges`. Each entry is kept in `results/judge.json` when it is done.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import jax
import matplotlib.pyplot as plt
import numpy as np
import typer

import jaxdiff
from experiments.judge.controls import Random, Told, confidence
from experiments.kept import Kept
from experiments.parallel.run import BASE, LENGTH, N_CHOOSE, N_TEST, SEED, Row, points
from experiments.policies import accuracy, describe, verdicts_of
from jaxdiff import policies
from jaxdiff.filters import named_filter
from jaxdiff.judges import named_judge
from jaxdiff.metrics import paired_difference
from jaxdiff.policies.judge import Correct, Judge
from jaxdiff.stoppers import Eos
from jaxdiff.tasks import gsm_symbolic
from jaxdiff.tasks.evaluate import prompt_ids
from jaxdiff.train.fit_judge import auc, logits_of
from jaxdiff.train.judgements import collect

RESULTS = Path(__file__).parent / "results"
PATH = RESULTS / "judge.json"
RASH = (0.5, 0.7, 0.85)  # thresholds of `learned`; its card's is the last
DOUBTS = (0.05, 0.1, 0.2, 0.4)  # of the judge, and of confidence
DRAWN = (0.9, 0.97)  # 1 minus the chance to be taken back
SURE = (0.5, 0.95)
N_CALIBRATE = 400


def learned(tau: Any) -> policies.Learned:
    """The model's own filter, at one threshold or at one for each row."""
    return dataclasses.replace(named_filter("gsm-1m")[0], tau=tau)


def grid(
    kind: Callable[..., Correct],
    judge: Judge,
    doubts: tuple[float, ...],
    sure: tuple[float, ...] = SURE[:1],
    rash: tuple[float, ...] = RASH,
) -> tuple[tuple[Any, ...], Any]:
    """All combinations (threshold, doubt, sure), and the policy of the numbers of some of them."""
    combined = tuple(itertools.product(rash, doubts, sure))
    table = np.asarray(combined, np.float32)

    def policy(number: Any) -> jaxdiff.Policy:
        tau, doubt, sure = table[np.asarray(number, int)].T
        return kind(learned(tau), judge, doubt, sure)

    return combined, policy


def rows_of(model: str) -> dict[str, tuple[tuple[Any, ...], Any]]:
    """Of each kind its combinations, and the policy of their numbers."""
    judge, _ = named_judge(model)

    def alone(number: Any) -> jaxdiff.Policy:
        return learned(np.asarray(RASH, np.float32)[np.asarray(number, int)])

    return {
        "threshold": (((0.99,),), lambda _: policies.Threshold(0.99)),
        "learned": (tuple((tau,) for tau in RASH), alone),
        "judge": grid(Correct, judge, DOUBTS, SURE),
        "confidence": grid(Correct, confidence(), DOUBTS),
        "random": grid(Random, confidence(), DRAWN),
        "told": grid(Told, confidence(), (0.5,), rash=RASH[:1]),  # each row has a standard decode first
    }


def opened(model: str) -> tuple[Kept, jaxdiff.Checkpoint]:
    checkpoint = jaxdiff.load(model)
    return Kept(PATH, describe(checkpoint, BASE, N_CHOOSE, "eos", SEED)), checkpoint


def standard(kept: Kept, checkpoint: jaxdiff.Checkpoint, split: str, n: int) -> dict[str, Any]:
    row = Row("standard", (0.0,), lambda _: policies.Fixed())
    make = functools.partial(points, checkpoint, row, row.values, n=n, split=split, length=LENGTH)
    return kept.once(f"standard | {split}", make)[0]


def chosen_of(entries: dict[str, Any], kind: str) -> dict[str, dict[str, Any]]:
    """The fastest point within one of standard decoding, and the most accurate for the work of a careful threshold."""
    swept = entries[f"{kind} | validation"]
    least = entries["standard | validation"][0]["accuracy"] - 1.0
    most = entries["threshold | validation"][0]["work"]
    near = [point for point in swept if point["accuracy"] >= least]
    cheap = [point for point in swept if point["work"] <= most]
    found = {"fastest": max(near, key=lambda point: point["tpf"], default=None)}
    found["most accurate"] = max(cheap, key=lambda point: (point["accuracy"], point["tpf"]), default=None)
    return {why: point for why, point in found.items() if point is not None}


app = typer.Typer(add_completion=False)
Model = Annotated[str, typer.Argument(help="A folder with the judge.")]


def sweep(checkpoint: jaxdiff.Checkpoint, kind: str, row: Any, numbers: list[int], split: str, n: int) -> Any:
    combined, policy = row
    made = points(checkpoint, Row(kind, (), policy), numbers, n=n, split=split, length=LENGTH)
    return [point | {"numbers": combined[number]} for number, point in zip(numbers, made, strict=True)]


@app.command()
def choose(model: Model) -> None:
    kept, checkpoint = opened(model)
    print(f"standard {standard(kept, checkpoint, 'validation', N_CHOOSE)['accuracy']:.1f} %")
    for kind, row in rows_of(model).items():
        every = list(range(len(row[0])))
        make = functools.partial(sweep, checkpoint, kind, row, every, "validation", N_CHOOSE)
        for point in kept.once(f"{kind} | validation", make):
            told = f"{accuracy(point)} %, TPF {point['tpf']:.2f}, work {point['work']:.2f}"
            print(kind, point["numbers"], told, flush=True)


@app.command()
def test(model: Model) -> None:
    kept, checkpoint = opened(model)
    standard(kept, checkpoint, "test", N_TEST)
    for kind, row in rows_of(model).items():
        chosen = chosen_of(kept.entries, kind)
        numbers = sorted({int(point["value"]) for point in chosen.values()})
        make = functools.partial(sweep, checkpoint, kind, row, numbers, "test", N_TEST)
        for point in kept.once(f"{kind} | test", make):
            print(kind, point["numbers"], f"{accuracy(point)} %, TPF {point['tpf']:.2f}", flush=True)


@app.command()
def calibrate(model: Model) -> None:
    kept, checkpoint = opened(model)
    judge, _ = named_judge(model)

    def measured() -> dict[str, Any]:
        problems = list(itertools.islice(gsm_symbolic.problems("test", SEED), N_CALIBRATE))
        prompts = [prompt_ids(checkpoint.tokenizer_for("problems"), problem) for problem in problems]
        careful = jaxdiff.Decoder(policy=policies.Threshold(0.99), stop=Eos())
        rash = [jaxdiff.learned_policy("gsm-1m", tau=0.5)]
        with tempfile.TemporaryDirectory() as folder:
            given = (checkpoint.model, checkpoint.params, prompts, range(len(prompts)), Path(folder) / "rows", careful)
            found = collect(*given, rash=rash, gen_length=LENGTH)
        logits, wrong = logits_of(judge, found), found.wrong[found.judged]
        said = np.asarray(jax.nn.sigmoid(logits))
        tenth = np.minimum((10 * said).astype(int), 9)
        bins = [
            {"said": float(said[tenth == i].mean()), "wrong": float(wrong[tenth == i].mean()), "n": int(count)}
            for i, count in enumerate(np.bincount(tenth, minlength=10))
            if count
        ]
        own = -found.odds[found.judged]
        areas = {"auc": auc(logits, wrong), "auc_of_confidence": auc(own, wrong)}
        return areas | {"n": N_CALIBRATE, "commits": int(wrong.size), "wrong": float(wrong.mean()), "bins": bins}

    found = kept.once("calibration", measured)
    figure, axis = plt.subplots(figsize=(4.5, 4.2), layout="constrained")
    axis.plot([0, 1], [0, 1], "--", color="0.6")
    axis.plot([bin["said"] for bin in found["bins"]], [bin["wrong"] for bin in found["bins"]], "o-")
    for each in found["bins"]:
        axis.annotate(
            f"{each['n']}", (each["said"], each["wrong"]), xytext=(4, -10), textcoords="offset points", size=7
        )
    axis.set(xlabel="what the judge says: wrong with probability", ylabel="share that is wrong")
    axis.set_title(f"{found['commits']:,} commits of rash decodes, AUC {found['auc']:.3f}", size=9)
    figure.savefig(RESULTS / "calibration.png", dpi=120)
    print(json.dumps({name: value for name, value in found.items() if name != "bins"}))


@app.command()
def report() -> None:
    """The chosen points on test problems, and every validation point."""
    entries = json.loads(PATH.read_text())["entries"]
    careful = entries["standard | test"][0]
    lines = [
        f"Test, n {careful['n']}. Numbers: threshold of `learned`, doubt, `sure`.",
        "",
        "| kind | chosen as | numbers | accuracy % | minus standard | NFE | TPF | work |",
        "|---|---|---|---:|---:|---:|---:|---:|",
        "| standard | " + line_of(careful | {"numbers": ()}, ""),
    ]
    kinds = [name.removesuffix(" | validation") for name in entries if name.endswith("| validation")][1:]
    for kind in kinds:
        why = chosen_of(entries, kind)
        for point in entries.get(f"{kind} | test", ()):
            names = " and ".join(name for name, each in why.items() if each["numbers"] == point["numbers"])
            off = [100 * x for x in paired_difference(verdicts_of(point), verdicts_of(careful))]
            lines.append(f"| {kind} | {names} " + line_of(point, "{:+.1f} [{:+.1f}, {:+.1f}]".format(*off)))
    lines += ["", f"Validation, n {N_CHOOSE}.", ""]
    lines += ["| kind | numbers | accuracy % | NFE | TPF | work |", "|---|---|---:|---:|---:|---:|"]
    lines += [f"| {kind} " + line_of(point) for kind in kinds for point in entries[f"{kind} | validation"]]
    PATH.with_suffix(".md").write_text("\n".join(lines) + "\n")
    print(PATH.with_suffix(".md"))


def line_of(point: dict[str, Any], off: str | None = None) -> str:
    numbers = ", ".join(f"{number:g}" for number in point["numbers"])
    middle = "" if off is None else f" {off} |"
    return f"| {numbers} | {accuracy(point)} |{middle} {point['nfe']:.2f} | {point['tpf']:.2f} | {point['work']:.2f} |"


if __name__ == "__main__":
    app()
