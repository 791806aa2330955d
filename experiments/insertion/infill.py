"""Holes in worked answers: an insertion model that is not told how much is missing beside a masked one that is.

    jaxdiff train --recipe experiments/insertion/infill.json --out runs/infill
    python -m experiments.insertion.infill --insertion runs/infill/model

Of each held-out problem the worked answer with one stretch of 4 to 20 tokens cut out, where and how long drawn by seed.
The insertion model has room for twice the longest; the masked model's canvas has as many masks as tokens were cut out.
Both are at temperature 0. `exact`: the text is the one that was cut. `right`: all numbers of the text are those of the
reference, in their order (the words may be others), and the task's verifier accepts it.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import typer

import jaxdiff
from jaxdiff.cli.show import note, progress
from jaxdiff.decode import Sampling
from jaxdiff.files import replaced_file
from jaxdiff.insertion import WAYS
from jaxdiff.metrics import paired_difference, wilson
from jaxdiff.serve import Answer, Meter, Request, decode_stream, insert_stream
from jaxdiff.tasks import gsm_symbolic
from jaxdiff.tasks.base import Problem
from jaxdiff.tasks.evaluate import held_out, prompt_ids

OUT = Path(__file__).parent / "results" / "infill.json"
SHORTEST, LONGEST, CANVAS, SLOTS = 4, 20, 160, 25
INSERTED = ("one", *(f"parallel:tau={tau}" for tau in (0.9, 0.7, 0.5, 0.3)))
FILLED = ("fixed", "fixed:order=margin", "threshold:tau=0.99", "threshold:tau=0.9")


@dataclasses.dataclass(frozen=True)
class Hole:
    """A problem, and its prompt and worked answer as ids, of which those from `start` to `end` were cut out."""

    problem: Problem
    ids: list[int]
    start: int
    end: int


def holes(tokenizer: jaxdiff.Tokenizer, n: int, split: str, seed: int) -> list[Hole]:
    rng, found = np.random.default_rng(seed), []
    for problem in held_out(gsm_symbolic.NAME, n, split=split, seed=seed):
        prompt, answer = prompt_ids(tokenizer, problem), tokenizer.encode(problem.worked)
        size = int(rng.integers(SHORTEST, LONGEST + 1))
        start = len(prompt) + int(rng.integers(0, len(answer) - size + 1))
        found.append(Hole(problem, [*prompt, *answer], start, start + size))
    return found


def of_insertion(checkpoint: jaxdiff.Checkpoint, way: str, asked: Sequence[Hole]) -> Iterable[tuple[Answer, list[int]]]:
    """Each answer, and the whole text's ids."""
    requests = [
        Request(hole.ids[: hole.start] + hole.ids[hole.end :], number, number, gaps=(hole.start - 1,))
        for number, hole in enumerate(asked)
    ]
    options: dict[str, Any] = {"slots": SLOTS, "gen_length": 2 * LONGEST, "key": jax.random.key(0), "meter": Meter()}
    for answer in insert_stream(checkpoint.model, checkpoint.params, requests, WAYS.parse(way), Sampling(), **options):
        yield answer, answer.tokens.tolist()


def of_masked(checkpoint: jaxdiff.Checkpoint, policy: str, asked: Sequence[Hole]) -> Iterable[tuple[Answer, list[int]]]:
    config, requests = checkpoint.model.config, []
    for number, hole in enumerate(asked):
        ids = hole.ids + [config.eos_token_id] * (CANVAS - len(hole.ids))
        ids[hole.start : hole.end] = [config.mask_token_id] * (hole.end - hole.start)
        requests.append(Request(ids, number, number, is_canvas=True))
    # The length is told: no hole may be filled with end-of-text.
    decoder = jaxdiff.Decoder(
        policy=jaxdiff.policies.parse(policy), sampling=Sampling(forbid_eos=True), block_length=CANVAS
    )
    for answer in decode_stream(
        checkpoint.model, checkpoint.params, requests, decoder, slots=SLOTS, gen_length=CANVAS, meter=Meter()
    ):
        assert isinstance(answer, Answer)  # and no refusal
        yield answer, answer.tokens[: len(asked[answer.request.id].ids)].tolist()


def judged(tokenizer: jaxdiff.Tokenizer, hole: Hole, found: list[int]) -> tuple[bool, bool]:
    """Whether the text is the one that was cut, and whether its numbers are."""
    first = len(prompt_ids(tokenizer, hole.problem))
    text, expected = tokenizer.decode(found[first:]), tokenizer.decode(hole.ids[first:])
    same = re.findall(r"\d+", text) == re.findall(r"\d+", expected)
    return found == hole.ids, same and gsm_symbolic.verify(text, hole.problem)


def measured(
    tokenizer: jaxdiff.Tokenizer, name: str, asked: Sequence[Hole], answers: Iterable[tuple[Answer, list[int]]]
) -> dict[str, Any]:
    exact, right, nfe, lengths = ([0.0] * len(asked) for _ in range(4))
    with progress(name, len(asked)) as update:
        for done, (answer, ids) in enumerate(answers, start=1):
            number = answer.request.id
            exact[number], right[number] = judged(tokenizer, asked[number], ids)
            nfe[number], lengths[number] = answer.nfe, len(ids) == len(asked[number].ids)
            update(done)
    row: dict[str, Any] = {"nfe": float(np.mean(nfe)), "right_length": float(np.mean(lengths))}
    for kind, each in (("exact", exact), ("right", right)):
        row[kind] = "".join(str(int(one)) for one in each)
        row[f"{kind} %"] = [100 * x for x in (float(np.mean(each)), *wilson(int(sum(each)), len(each)))]
    note(f"{name}: exact {row['exact %'][0]:.1f} %, right {row['right %'][0]:.1f} %, {row['nfe']:.2f} forwards")
    return row


def main(
    insertion: Annotated[Path, typer.Option(help="A model folder.")],
    masked: Annotated[str, typer.Option(help="A model's name or folder.")] = "gsm-1m",
    n: Annotated[int, typer.Option(min=1, help="Problems.")] = 500,
    split: str = "test",
    seed: int = 0,
    out: Path = OUT,
) -> None:
    rows: dict[str, dict[str, Any]] = {}
    kinds: tuple[tuple[str, Any, Sequence[str], Callable[..., Any]], ...] = (
        ("insertion", insertion, INSERTED, of_insertion),
        ("masked", masked, FILLED, of_masked),
    )
    for kind, source, ways, decode in kinds:
        checkpoint = jaxdiff.load(source)
        tokenizer = checkpoint.tokenizer_for("problems")
        asked = holes(tokenizer, n, split, seed)
        for way in ways:
            name = f"{kind} {way}"
            rows[name] = measured(tokenizer, name, asked, decode(checkpoint, way, asked))
    best = max((name for name in rows if name.startswith("masked")), key=lambda name: rows[name]["right"].count("1"))
    for row in rows.values():
        for kind in ("exact", "right"):
            mine, other = (np.asarray([*each[kind]]) == "1" for each in (row, rows[best]))
            row[f"{kind} minus {best}"] = [100 * each for each in paired_difference(mine, other)]
    out.parent.mkdir(exist_ok=True)
    setting = {"masked": masked, "n": n, "split": split, "seed": seed, "cut": [SHORTEST, LONGEST]}
    with replaced_file(out) as new:
        new.write_text(json.dumps(setting | {"rows": rows}, indent=1) + "\n")
    print(out)


if __name__ == "__main__":
    typer.run(main)
