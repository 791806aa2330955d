"""The training data of the larger model, made before: worked answers of all templates of `gsm_symbolic`, as token ids.

    python -m experiments.gpu.problems [--small]      # into runs/gpu/

Needs `reasoning-gym` and no GPU; the machine that trains needs what this writes and not `reasoning-gym`:

    tokenizer.json ...   byte-level BPE of its own, fitted on the training problems
    rows.npz             flat token ids of the training problems with their lengths; packed rows of single steps
    held_out.json        test problems, which no training problem equals: the split is by the question's hash

Unlike the task `gsm_symbolic`, which keeps 10 of the templates and whole numbers of at most 60, any number stands here.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import re
import sys
from collections.abc import Iterator
from random import Random
from typing import Any, cast

import numpy as np

from experiments.gpu.job import CARRIED
from jaxdiff.checkpoint import Tokenizer, load_tokenizer
from jaxdiff.tasks import TASKS, drills
from jaxdiff.tasks.base import Problem, Split
from jaxdiff.tasks.gsm_symbolic import split_of
from jaxdiff.train.tokenizer import train_tokenizer

NAME = "gsm_symbolic_all"  # as a task
VOCABULARY, TOKENIZER_PROBLEMS, SEED = 2048, 20_000, 0
EACH, HELD_OUT = 2000, 5  # problems of a template, at most
LONGEST = 320  # tokens of a problem with its answer; longer ones are left out
PACKED, PACKED_ROWS = 96, 40_000  # tokens of a packed row, and rows of each kind
SMALL = {"EACH": 40, "TOKENIZER_PROBLEMS": 500, "PACKED_ROWS": 50}
TRIES = 500  # without a new problem: then a template is taken to be used up
STEP = re.compile(r"^(?P<left>[^\n]*= ?[^\w\s]?)(?P<result>\d+(?:\.\d+)?)", re.MULTILINE)


def problems(split: Split, seed: int, each: int | None = None) -> Iterator[Problem]:
    """Distinct problems of one split, the templates in turn until each has no new one left, or has given `each`."""
    from reasoning_gym.arithmetic.gsm_symbolic import gsm_symbolic as source

    generators = source.GSMSymbolicDataset(source.GSMSymbolicDatasetConfig(seed=0, size=1)).generators
    rng, seen, left = Random(f"{NAME}/{seed}"), set[bytes](), list(source.tasks_ok)
    for turn in itertools.count():
        if not left or turn == each:
            return
        for template in tuple(left):
            for _ in range(TRIES):
                raw = generators[template](rng, 1.0)
                question, worked = raw["question"], raw["metadata"]["answer_cot"]
                digest = hashlib.blake2b(question.encode(), digest_size=8).digest()
                answer = re.search(r"#### (\S+)$", worked)
                if answer is not None and split_of(question) == split and digest not in seen:
                    seen.add(digest)
                    yield Problem(question=question, worked=worked, answer=answer[1], template=template)
                    break
            else:
                left.remove(template)


def verify(answer: str, problem: Problem) -> bool:
    """True if what stands behind the last `####` is the problem's answer."""
    found = re.findall(r"####\s*(\S+)", answer)
    return bool(found) and found[-1] == problem.answer


def steps(found: list[Problem]) -> Iterator[tuple[str, str]]:
    """Lines of worked answers up to an equals sign, and the number behind it; in an order that is drawn, endless."""
    rng = Random(SEED)
    while True:
        for step in STEP.finditer(found[rng.randrange(len(found))].worked):
            yield step["left"], step["result"]


def sums() -> Iterator[tuple[str, str]]:
    for problem in drills.problems("train", SEED):
        yield problem.question, problem.worked


def packed(lines: Iterator[tuple[str, str]], tokenizer: Tokenizer, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of PACKED tokens, filled with lines one after another; and which tokens are results."""
    tokens = np.full((rows, PACKED), tokenizer.eos_id, np.uint16)
    answers, newline = np.zeros(tokens.shape, bool), tokenizer.encode("\n")
    for row in range(rows):
        at = 0
        while True:
            prompt, answer = (tokenizer.encode(text) for text in next(lines))
            line = [*prompt, *answer, *newline]
            if len(line) > PACKED:
                continue
            if at + len(line) > PACKED:
                break
            tokens[row, at : at + len(line)] = line
            answers[row, at + len(prompt) : at + len(prompt) + len(answer)] = True
            at += len(line)
    return tokens, answers


def main() -> None:
    if "--small" in sys.argv:
        globals().update(SMALL)
    CARRIED.mkdir(parents=True, exist_ok=True)
    TASKS[NAME] = cast(Any, sys.modules[__name__])  # so that the library's own functions find it
    train_tokenizer(NAME, TOKENIZER_PROBLEMS, VOCABULARY, SEED, CARRIED)
    tokenizer = load_tokenizer(CARRIED)
    assert tokenizer is not None
    found = list(problems("train", SEED, EACH))
    pairs = [(tokenizer.prompt(p.question), tokenizer.encode(p.worked)) for p in found]
    kept = [(prompt, answer) for prompt, answer in pairs if len(prompt) + len(answer) < LONGEST]
    rows: dict[str, np.ndarray] = {
        "tokens": np.fromiter(itertools.chain.from_iterable(p + a for p, a in kept), np.uint16),
        "prompts": np.asarray([len(prompt) for prompt, _ in kept], np.uint16),
        "answers": np.asarray([len(answer) for _, answer in kept], np.uint16),
    }
    for name, lines in (("steps", steps(found)), ("drills", sums())):
        rows[f"{name}_tokens"], rows[f"{name}_answers"] = packed(lines, tokenizer, PACKED_ROWS)
    np.savez_compressed(CARRIED / "rows.npz", **cast(Any, rows))
    held = [dataclasses.asdict(problem) for problem in problems("test", SEED, HELD_OUT)]
    (CARRIED / "held_out.json").write_text(json.dumps(held) + "\n")
    print(
        f"{len(found):,} problems of {len({p.template for p in found})} templates, {len(kept):,} of them within "
        f"{LONGEST} tokens, {rows['tokens'].size:,} tokens; {len(held)} held out; rows.npz "
        f"{(CARRIED / 'rows.npz').stat().st_size / 1e6:.1f} MB"
    )


if __name__ == "__main__":
    main()
