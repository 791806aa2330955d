r"""What does a judge win where the joint is known? `python -m experiments.judge.permutation [choose|test|know|report]`

    jaxdiff collect --out runs/letters --model puzzles-1m --task permutation --n 400 --stop none --gen-length 8 \
        --block-length 8 --batch-size 400 --temperature 1 --features --unlikely 0.02 \
        --rash fixed:steps=2,order=entropy
    jaxdiff fit --kind judge --name judge --traces runs/letters --model MODEL --steps 600
    python -m experiments.judge.permutation choose MODEL
    python -m experiments.judge.permutation test MODEL
    python -m experiments.judge.permutation know MODEL
    python -m experiments.judge.permutation report

MODEL is a copy of `puzzles-1m`'s folder. `permutation` at temperature 1: 8 of 12 letters, each once, in a block of 8.
Letters of one forward are drawn without knowing of each other, so that two are the same the more often, the more a
forward draws. `fixed` takes the positions of least entropy first, which of its orders is the most valid here.

choose  Validation problems: `fixed` at 1 to 8 forwards alone; at 4 letters a forward and at 3 with the judge; and what
        that is compared with at the same policy: random remasking, remasking by the commit's own confidence, the shadow
        of `wino`, and two oracles that know which letter stands there twice: one takes back all but the leftmost, the
        other (`all`) both. Of each kind the most valid is chosen at no more work than `fixed` at 2 letters a forward
        has.
test    What was chosen, once, on test problems.
know    The judge on rash decodes of test problems: area under the ROC curve, against what is unlikely beside what was
        committed before it.

Each entry is kept in `results/permutation.json` when it is done.
"""

from __future__ import annotations

import functools
import itertools
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import typer

import jaxdiff
from experiments.judge.controls import Again, Random, Repeats, confidence
from experiments.kept import Kept
from experiments.policies import accuracy, describe, verdicts_of
from jaxdiff import Sampling, policies
from jaxdiff.cli.show import progress
from jaxdiff.decode.batches import batches, request_keys
from jaxdiff.judges import named_judge
from jaxdiff.metrics import paired_difference, wilson
from jaxdiff.policies.judge import Correct, Judge
from jaxdiff.tasks import evaluate, permutation
from jaxdiff.tasks.evaluate import prompt_ids
from jaxdiff.train.fit_judge import auc, logits_of
from jaxdiff.train.judgements import collect

PATH = Path(__file__).parent / "results" / "permutation.json"
TASK, LENGTH, SEED, ROWS = permutation.NAME, 8, 0, 200
N_CHOOSE, N_TEST, N_KNOW = 300, 1000, 300
ORDER = "entropy"  # of `fixed`: the most valid of its orders
PLAIN = (1, 2, 3, 4, 5, 6, 7, 8)  # forwards of `fixed` alone
EQUAL = 4  # of what the others are compared with: 2 letters each
RASH = (2, 3)  # forwards of `fixed` under what takes back: 4 letters each, 3
DOUBTS, DRAWN = (0.3, 0.6), (0.8, 0.95)  # of judges; 1 minus the chance to be taken back
SURE = (0.0, 0.15, 0.18, 0.9)  # a letter of 8 that are left has 0.125, of 5 0.2
WINO = (0.02, 0.05, 0.1, 0.2)


def grid(
    kind: Callable[..., Correct],
    judge: Judge,
    doubts: tuple[float, ...],
    rash: tuple[int, ...] = RASH,
    sure: tuple[float, ...] = SURE,
) -> tuple[tuple[Any, ...], Any]:
    """All combinations (forwards, doubt, sure), and the policy of the numbers of some of them."""
    combined = tuple(itertools.product(rash, doubts, sure))
    table = np.asarray(combined, np.float32)

    def policy(number: Any) -> jaxdiff.Policy:
        steps, doubt, sure = table[np.asarray(number, int)].T
        return kind(policies.Fixed(steps=steps.astype(np.int32), order=ORDER), judge, doubt, sure)

    return combined, policy


def rows_of(judge: Judge) -> dict[str, tuple[tuple[Any, ...], Any]]:
    """Of each kind its combinations, and the policy of their numbers."""
    wino, steps_of = tuple((revoke,) for revoke in WINO), np.asarray(PLAIN, np.int32)
    return {
        **{
            ("fixed" if order == ORDER else f"fixed, {order}"): (
                tuple((steps,) for steps in PLAIN),
                lambda number, order=order: policies.Fixed(steps=steps_of[np.asarray(number, int)], order=order),
            )
            for order in (ORDER, "confidence", "random")
        },
        "judge": grid(Correct, judge, DOUBTS, RASH[:1], SURE[1:2]),
        "confidence": grid(Correct, confidence(), (0.5, 0.85, 0.9), RASH[:1], SURE[1:2]),
        "random": grid(Random, confidence(), DRAWN, RASH[:1], SURE[1:2]),
        "oracle": grid(Repeats, confidence(), (0.5,)),
        "oracle, all": grid(Again, confidence(), (0.5,)),
        "wino": (wino, lambda number: policies.Wino(0.0, np.asarray(WINO, np.float32)[np.asarray(number, int)])),
    }


def swept(checkpoint: jaxdiff.Checkpoint, kind: str, row: Any, numbers: list[int], split: str, n: int) -> Any:
    """A point for each of the numbers: share of valid answers, forwards and work."""
    combined, policy = row
    tokenizer, problems = checkpoint.tokenizer_for(TASK), evaluate.held_out(TASK, n, split=split, seed=SEED)
    prompts, origin = jaxdiff.pad_prompts([prompt_ids(tokenizer, each) for each in problems], fill=0)
    which, points = np.tile(np.arange(n), len(numbers)), []
    valid, nfe, work = (np.zeros(which.size) for _ in range(3))
    with progress(f"{kind}, {split}", which.size) as update:
        for rows in batches(which.size, ROWS):
            own = policy(np.repeat(numbers, n)[rows])
            decoder = jaxdiff.Decoder(policy=own, sampling=Sampling(temperature=1.0), block_length=LENGTH)
            at, keys = which[rows], request_keys(SEED, which[rows])  # as `jaxdiff eval` has them
            given = (checkpoint.model, checkpoint.params, prompts[at], decoder)
            result = jax.device_get(jaxdiff.decode(*given, origin=origin[at], gen_length=LENGTH, key=keys))
            texts = map(tokenizer.decode, result.tokens[:, -LENGTH:])
            valid[rows] = [permutation.verify(text, problems[i]) for text, i in zip(texts, at, strict=True)]
            nfe[rows], work[rows] = result.nfe, result.work
            update(int(rows.max()) + 1)
    for number, own, *counts in zip(numbers, *(each.reshape(-1, n) for each in (valid, nfe, work)), strict=True):
        told = dict(zip(("nfe", "work"), (float(each.mean()) for each in counts), strict=True))
        interval = [100 * end for end in wilson(int(own.sum()), n)]
        verdicts = "".join(map(str, own.astype(int)))
        accurate = {"accuracy": 100 * float(own.mean()), "interval": interval, "correct": verdicts}
        points.append({"value": number, "numbers": combined[number], "n": n} | accurate | told)
    return points


def opened(model: str) -> tuple[Kept, jaxdiff.Checkpoint, Judge]:
    checkpoint = jaxdiff.load(model)
    setting = {key: describe(checkpoint, "", 0, "none", SEED)[key] for key in ("weights", "seed", "device", "versions")}
    return Kept(PATH, setting | {"task": TASK, "temperature": 1.0}), checkpoint, named_judge(model)[0]


def chosen_of(entries: dict[str, Any], kind: str) -> list[int]:
    """The most valid for no more work than `fixed` at 2 letters a forward, with each number of forwards under it; of
    `fixed` what is around that.
    """
    found = entries[f"{kind} | validation"]
    if kind == "fixed":
        return [PLAIN.index(steps) for steps in (EQUAL, EQUAL + 1)]
    cheap = [point for point in found if point["work"] <= EQUAL] or [min(found, key=lambda point: point["work"])]
    best = {}
    for point in sorted(cheap, key=lambda point: (point["accuracy"], -point["work"])):
        best[point["numbers"][0] if kind != "wino" else 0] = int(point["value"])
    return sorted(best.values())


app = typer.Typer(add_completion=False)
Model = Annotated[str, typer.Argument(help="A folder with the judge.")]
N = Annotated[int, typer.Option(min=1, help="Problems.")]
Only = Annotated[list[str] | None, typer.Option(help="Kinds; default all.")]


def told(kind: str, point: dict[str, Any]) -> None:
    line = f"{accuracy(point)} %, NFE {point['nfe']:.2f}, work {point['work']:.2f}"
    print(kind, point["numbers"], line, flush=True)


@app.command()
def choose(model: Model, n: N = N_CHOOSE, only: Only = None) -> None:
    kept, checkpoint, judge = opened(model)
    for kind, row in rows_of(judge).items():
        if only is None or kind in only:
            make = functools.partial(swept, checkpoint, kind, row, list(range(len(row[0]))), "validation", n)
            for point in kept.once(f"{kind} | validation", make):
                told(kind, point)


@app.command("test")
def measure_chosen(model: Model, n: N = N_TEST, only: Only = None) -> None:
    kept, checkpoint, judge = opened(model)
    for kind, row in rows_of(judge).items():
        if only is None or kind in only:
            make = functools.partial(swept, checkpoint, kind, row, chosen_of(kept.entries, kind), "test", n)
            for point in kept.once(f"{kind} | test", make):
                told(kind, point)


@app.command()
def know(model: Model) -> None:
    kept, checkpoint, judge = opened(model)

    def measured() -> dict[str, Any]:
        problems = list(itertools.islice(permutation.problems("test", SEED), N_KNOW))
        prompts = [prompt_ids(checkpoint.tokenizer_for(TASK), problem) for problem in problems]
        decoder = jaxdiff.Decoder(sampling=Sampling(temperature=1.0), block_length=LENGTH)
        with tempfile.TemporaryDirectory() as folder:
            given = (checkpoint.model, checkpoint.params, prompts, range(N_KNOW), Path(folder) / "rows", decoder)
            sizes = dict(gen_length=LENGTH, batch_size=ROWS, seed=SEED + 1)
            found = collect(*given, rash=[policies.Fixed(steps=2, order=ORDER)], unlikely=0.02, **sizes)
        logits, wrong = logits_of(judge, found), found.wrong[found.judged]
        said = np.asarray(jax.nn.sigmoid(logits))
        sure = said > 0.5
        return {
            "auc": auc(logits, wrong),
            "auc_of_confidence": auc(-found.odds[found.judged], wrong),
            "wrong": float(wrong.mean()),
            "commits": int(wrong.size),
            "right_where_it_says_wrong": float(wrong[sure].mean()),
            "found": float(sure[wrong].mean()),
        }

    print(json.dumps(kept.once("knows", measured)))


@app.command()
def report() -> None:
    """The chosen points on test problems beside `fixed` at no less work, and every validation point."""
    entries = json.loads(PATH.read_text())["entries"]
    plain = {point["numbers"][0]: point for point in entries["fixed | test"]}
    lines = [
        f"Test, n {plain[EQUAL]['n']}. Numbers: forwards of `fixed`, doubt, `sure`.",
        "",
        f"| kind | numbers | valid % | minus `fixed` at {EQUAL} forwards | NFE | work |",
        "|---|---|---:|---:|---:|---:|",
    ]
    kinds = [name.removesuffix(" | test") for name in entries if name.endswith("| test")]
    for kind in kinds:
        for point in entries[f"{kind} | test"]:
            off = [100 * x for x in paired_difference(verdicts_of(point), verdicts_of(plain[EQUAL]))]
            lines.append(f"| {kind} " + line_of(point, "{:+.1f} [{:+.1f}, {:+.1f}]".format(*off)))
    lines += ["", f"Validation, n {entries['fixed | validation'][0]['n']}.", ""]
    lines += ["| kind | numbers | valid % | NFE | work |", "|---|---|---:|---:|---:|"]
    lines += [f"| {kind} " + line_of(point) for kind in kinds for point in entries[f"{kind} | validation"]]
    PATH.with_suffix(".md").write_text("\n".join(lines) + "\n")
    print(PATH.with_suffix(".md"))


def line_of(point: dict[str, Any], off: str | None = None) -> str:
    numbers = ", ".join(f"{number:g}" for number in point["numbers"])
    middle = "" if off is None else f" {off} |"
    return f"| {numbers} | {accuracy(point)} |{middle} {point['nfe']:.2f} | {point['work']:.2f} |"


if __name__ == "__main__":
    app()
