"""ENAT beside a uniform model of equal parameters, data and steps: accuracy, forwards and work on puzzles; and the
seconds of a decode on a canvas of 1,024.

    jaxdiff train --recipe experiments/enat/recipe.json --out runs/enat
    jaxdiff train --recipe experiments/enat/uniform.json --out runs/uniform
    python -m experiments.enat.run --enat runs/enat/model --uniform runs/uniform/model

Each task is decoded by ENAT over its cache and without it (the same tokens, but for near-ties), by the uniform model
without a cache. The seconds are of one row, LENGTH / 2 tokens of prompt and as many to generate, STEPS forwards for
each block of BLOCK; the ways take turns, ROUNDS times, and medians are shown. Run it on an idle machine.
"""

from __future__ import annotations

import os
import statistics
import time
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import typer

import jaxdiff
from jaxdiff import caches, policies
from jaxdiff.cli.show import note, progress
from jaxdiff.decode import Program
from jaxdiff.files import replaced_file, write_object
from jaxdiff.serve import Meter
from jaxdiff.tasks.evaluate import evaluate

OUT = Path(__file__).parent / "results" / "enat.json"
TASKS = ("latin", "permutation")
POLICIES = ("fixed", *(f"threshold:tau={tau}" for tau in (0.99, 0.9, 0.7)))  # one a forward, and several
WAYS = (("enat", "encoded"), ("enat", "none"), ("uniform", "none"))
LENGTH, BLOCK, STEPS, ROUNDS = 1024, 32, 8, 5
NUMBERS = ("accuracy", "accuracy_low", "accuracy_high", "nfe", "work", "tpf", "seconds", "not_finite")


def main(
    enat: Annotated[Path, typer.Option(help="A model folder.")],
    uniform: Annotated[Path, typer.Option(help="Its twin's.")],
    tasks: Annotated[
        list[str] | None, typer.Option("--task", help="Once for each; default latin, permutation.")
    ] = None,
    n: Annotated[int, typer.Option(min=1, help="Problems of each task.")] = 500,
    split: str = "test",
    batch_size: int = 50,
    rounds: Annotated[int, typer.Option(min=0, help="Of the clock; 0: nothing is timed.")] = ROUNDS,
    out: Path = OUT,
) -> None:
    models = {"enat": jaxdiff.load(enat), "uniform": jaxdiff.load(uniform)}
    rows = [
        {"task": task, "model": name, "cache": cache, "policy": policy} | numbers
        for task in tasks or TASKS
        for name, cache in WAYS
        for policy, numbers in judged(models[name], task, cache, n=n, split=split, batch_size=batch_size)
    ]
    found: dict[str, Any] = {"n": n, "split": split, "rows": rows}
    found["parameters"] = {
        name: sum(leaf.size for leaf in jax.tree.leaves(each.params)) for name, each in models.items()
    }
    if rounds:
        found |= {"load_before": os.getloadavg()[0], "canvas": LENGTH, "timed": timed(models, rounds)}
    out.parent.mkdir(exist_ok=True)
    with replaced_file(out) as new:
        write_object(new, found)


def judged(model: jaxdiff.Checkpoint, task: str, cache: str, **options: Any) -> list[tuple[str, dict[str, Any]]]:
    """What is told of a task's evaluation, by policy."""
    meter, found = Meter(), []
    for policy in POLICIES:
        decoder = jaxdiff.Decoder(policy=policies.parse(policy), cache=caches.CACHES.parse(cache))
        with progress(f"{task} {policy}", options["n"]) as update:
            summary = evaluate(model, task, decoder, meter=meter, progress=update, **options).summary()
        found.append((policy, {name: summary[name] for name in NUMBERS}))
        what = f"{type(model.model).__name__}, cache {cache}, {task}, {policy}"
        note(f"{what}: {summary['accuracy']:.1%} right, {summary['nfe']:.2f} forwards, work {summary['work']:.2f}")
    return found


def timed(models: dict[str, jaxdiff.Checkpoint], rounds: int) -> list[dict[str, Any]]:
    """Median seconds of a decode, its forwards and its work."""
    ways = (*WAYS, ("uniform", "dual"))  # an approximate cache
    programs = [program(models[name], caches.CACHES.parse(cache)) for name, cache in ways]
    results = [jax.block_until_ready(run()) for run in programs]
    seconds = np.asarray([[elapsed(run) for run in programs] for _ in range(rounds)])
    rows = []
    for (name, cache), result, each in zip(ways, results, seconds.T, strict=True):
        rows.append({"model": name, "cache": cache, "seconds": statistics.median(each.tolist())})
        rows[-1] |= {"nfe": int(result.nfe[0]), "work": float(result.work[0]), "each": each.tolist()}
        note(f"{name}, cache {cache}: {rows[-1]['seconds']:.2f} s, work {rows[-1]['work']:.1f}")
    return rows


def program(model: jaxdiff.Checkpoint, cache: jaxdiff.Cache) -> Program:
    half = LENGTH // 2
    prompt = np.random.default_rng(0).integers(4, model.model.config.vocab_size, (1, half)).astype(np.int32)
    decoder = jaxdiff.Decoder(policy=policies.Fixed(steps=STEPS), cache=cache, block_length=BLOCK)
    return jaxdiff.lower(model.model, model.params, prompt, decoder, gen_length=half)


def elapsed(run: Any) -> float:
    since = time.perf_counter()
    run()
    return time.perf_counter() - since


if __name__ == "__main__":
    typer.run(main)
