"""Four given answers to choose from, beside the answer that is decoded freely: how often is each right?

    python experiments/choices.py --n 300

Of each problem the right number and three wrong ones, drawn by seed from the numbers of its question and of its worked
answer, and from what lies near the right one. They are compared at once, behind the question, and worked: behind the
freely decoded text up to its `####`. Each by both estimators of `jaxdiff.choose`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from random import Random
from typing import Annotated, Any

import numpy as np
import typer

import jaxdiff
from jaxdiff.checkpoint import SHIPPED, Checkpoint
from jaxdiff.cli.show import progress
from jaxdiff.decode.batches import batches, request_keys
from jaxdiff.metrics import paired_difference, wilson
from jaxdiff.stoppers import Eos
from jaxdiff.tasks import gsm_symbolic
from jaxdiff.tasks.base import Problem
from jaxdiff.tasks.evaluate import evaluate, prompt_ids

WRONG = 3
ROWS = 8  # problems at a time
SAMPLES = 32
SIGN = "####"
RESULT = Path(__file__).parent / "results" / "choices.json"


def answers_of(problem: Problem, seed: int) -> list[str]:
    """The four answers, in an order that the seed draws."""
    rng, right = Random(f"choices/{seed}/{problem.question}"), int(problem.answer)
    there = {int(number) for number in re.findall(r"\d+", f"{problem.question} {problem.worked}")} - {right}
    near = {right + step for step in (-10, -2, -1, 1, 2, 10) if right + step >= 0} - there
    wrong = rng.sample(sorted(there), min(WRONG, len(there)))
    wrong += rng.sample(sorted(near), WRONG - len(wrong))
    return [str(number) for number in rng.sample([right, *wrong], WRONG + 1)]


def chosen(
    checkpoint: Checkpoint, prompts: list[list[int]], texts: list[list[str]], method: str, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """The number of each problem's best answer, and the forwards that it took; one program for all."""
    tokenizer, count = checkpoint.tokenizer_for("choices"), len(prompts)
    choices = [[tokenizer.part(text) for text in each] for each in texts]
    longest = 1 + max(len(tokens) for each in choices for tokens in each)
    ids, origin = jaxdiff.pad_prompts(prompts, fill=tokenizer.eos_id)
    best, nfe = np.zeros(count, int), np.zeros(count, int)
    with progress(method, count) as update:
        for at in batches(count, ROWS):
            found = jaxdiff.choose(
                *(checkpoint.model, checkpoint.params, ids[at], [choices[row] for row in at]),
                method=method,
                gen_length=longest,
                origin=origin[at],
                samples=SAMPLES,
                key=request_keys(seed, at),
            )
            best[at], nfe[at] = found.best, found.nfe.sum(axis=1)
            update(int(at.max()) + 1)
    return best, nfe


def main(
    n: Annotated[int, typer.Option(help="Test problems.", min=2)] = 300,
    seed: Annotated[int, typer.Option(help="Of the problems, and of the wrong answers.", min=0)] = 0,
    model: Annotated[str, typer.Option(help="A model folder, or the name of one that ships.")] = SHIPPED,
    out: Annotated[Path, typer.Option(help="The JSON.")] = RESULT,
) -> None:
    checkpoint = jaxdiff.load(model)
    tokenizer = checkpoint.tokenizer_for("choices")
    with progress("free", n) as update:
        free = evaluate(
            checkpoint, gsm_symbolic.NAME, jaxdiff.Decoder(stop=Eos()), n=n, seed=seed, batch_size=ROWS, progress=update
        )
    answers = [answers_of(problem, seed) for problem in free.problems]
    right = np.asarray([each.index(problem.answer) for each, problem in zip(answers, free.problems, strict=True)])
    asked = [prompt_ids(tokenizer, problem) for problem in free.problems]
    works = [text.partition(SIGN)[0].rstrip("\n") + f"\n{SIGN}" for text in free.texts]
    worked = [prompt + tokenizer.part(work) for prompt, work in zip(asked, works, strict=True)]
    ways = {
        "at once": (asked, [[f"{SIGN} {answer}" for answer in each] for each in answers]),
        "worked": (worked, [[f" {answer}" for answer in each] for each in answers]),
    }
    lines: list[dict[str, Any]] = [
        {"way": "free", "correct": int(free.correct.sum()), "nfe": int(free.nfe.sum())} | interval(free.correct)
    ]
    for way, (prompts, texts) in ways.items():
        for method in ("order", "likelihood"):
            best, nfe = chosen(checkpoint, prompts, texts, method, seed)
            correct = best == right
            line = {"way": way, "method": method, "correct": int(correct.sum()), "nfe": int(nfe.sum())}
            lines.append(line | interval(correct) | {"free_minus_this": paired_difference(free.correct, correct)})
    for line in lines:
        print(json.dumps(line))
    told = {"model": model, "n": n, "seed": seed, "samples": SAMPLES, "ways": lines}
    out.write_text(json.dumps(told, indent=1) + "\n")


def interval(correct: np.ndarray) -> dict[str, Any]:
    """The accuracy, and the ends of its 95 % interval."""
    return {"accuracy": float(correct.mean()), "interval": wilson(int(correct.sum()), len(correct))}


if __name__ == "__main__":
    typer.run(main)
