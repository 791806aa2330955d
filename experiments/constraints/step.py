"""What a constraint costs: the seconds of a step of the model that ships, with a regular expression and without.

    python -m experiments.constraints.step

Whole decodes of one token a step, of as many steps, timed in turn. `idle`: a regular expression of 50 states that every
text in ASCII matches, so that each step looks and nothing is ruled out; `characters`: the same of any characters, which
over bytes of UTF-8 are some 400 states; `strict`: one that rules the model's candidate out in most of the steps, so
that they go over the head again.
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import typer

import jaxdiff
from jaxdiff.bench.clock import in_turn, ratio
from jaxdiff.constraints import Regex
from jaxdiff.tasks.evaluate import held_out

GEN_LENGTH, BLOCK_LENGTH = 128, 32
PATTERNS = {
    "idle": r"([\x00-\x7f]{50})*[\x00-\x7f]{0,49}",
    "characters": r"((?s:.){47})*(?s:.){0,46}",
    "strict": r"([a-j]{2}[k-z]{2}){12}",
}
TARGET = 1.15
RESULT = Path(__file__).parent / "results" / "step.json"


def main(
    rounds: Annotated[int, typer.Option(min=1)] = 31,
    rows: Annotated[list[int] | None, typer.Option(help="Batch sizes.")] = None,
) -> None:
    """Writes results/step.json."""
    checkpoint = jaxdiff.load()
    tokenizer = checkpoint.tokenizer_for("a regular expression")
    found: dict[str, Any] = {"gen_length": GEN_LENGTH, "block_length": BLOCK_LENGTH, "device": str(jax.devices()[0])}
    found["cores"], found["batches"] = os.cpu_count(), {}
    constraints: dict[str, Regex | None] = {"none": None}
    constraints |= {name: tokenizer.regex(pattern) for name, pattern in PATTERNS.items()}
    for count in rows or [1, 8]:
        ids = [tokenizer.prompt(problem.question) for problem in held_out("gsm_symbolic", count, split="test", seed=0)]
        prompts, origin = jaxdiff.pad_prompts(ids, fill=checkpoint.model.config.eos_token_id, multiple=32)
        plain = jaxdiff.Decoder(block_length=BLOCK_LENGTH)
        programs = {
            name: jaxdiff.lower(
                checkpoint.model,
                checkpoint.params,
                prompts,
                dataclasses.replace(plain, constraint=constraint),
                gen_length=GEN_LENGTH,
                origin=origin,
            )
            for name, constraint in constraints.items()
        }
        results = {name: program() for name, program in programs.items()}
        seconds = in_turn(programs, rounds)
        found["batches"][count] = {
            name: {
                "pattern": PATTERNS.get(name),
                "table": None if (table := constraints[name]) is None else list(np.shape(table.next)),
                "compile_seconds": programs[name].compile_seconds,
                "milliseconds_a_step": 1e3 * float(np.median(seconds[name])) / GEN_LENGTH,
                "ratio": dataclasses.asdict(ratio(seconds[name], seconds["none"])),
                "same_tokens": bool(np.array_equal(results[name].tokens, results["none"].tokens)),
            }
            for name in programs
        }
    found["met"] = all(each["idle"]["ratio"]["median"] <= TARGET for each in found["batches"].values())
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    typer.run(main)
