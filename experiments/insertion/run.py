"""Star graphs: an insertion model beside its masked twin, each by several ways of decoding it; written as JSON.

    jaxdiff train --recipe experiments/insertion/recipe.json --out runs/insertion
    jaxdiff train --recipe experiments/insertion/masked.json --out runs/masked
    python -m experiments.insertion.run --insertion runs/insertion/model --masked runs/masked/model

Both have the same backbone, data and steps. The masked twin is told the longest answer's length and fills it with
end-of-text, as puzzles are decoded; the insertion model has as much room.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

import jaxdiff
from jaxdiff.cli.show import note, progress
from jaxdiff.files import replaced_file, write_object
from jaxdiff.insertion import WAYS
from jaxdiff.serve import Meter
from jaxdiff.tasks.evaluate import Report, evaluate, evaluate_insertion

OUT = Path(__file__).parent / "results" / "star.json"
INSERTED = ("one", *(f"parallel:tau={tau}" for tau in (0.9, 0.7, 0.5, 0.3, 0.1, 0.03, 0.0)))
FILLED = (
    "fixed",  # one a forward, the most probable token first
    "fixed:order=margin",
    "fixed:order=entropy",
    "fixed:order=random",  # the vanilla sampler
    *(f"threshold:tau={tau}" for tau in (0.99, 0.9, 0.7)),
)


def main(
    insertion: Annotated[Path | None, typer.Option(help="A model folder; left out: not measured.")] = None,
    masked: Annotated[Path | None, typer.Option(help="Its twin's folder; left out: not measured.")] = None,
    task: Annotated[str, typer.Option(help="star_easy, star_medium or star_hard.")] = "star_medium",
    n: Annotated[int, typer.Option(min=1, help="Problems.")] = 500,
    split: str = "test",
    batch_size: int = 50,
    out: Path = OUT,
) -> None:
    rows: list[dict[str, Any]] = []
    asked = {"n": n, "split": split, "batch_size": batch_size}
    for model, folder, ways in (("insertion", insertion, INSERTED), ("masked", masked, FILLED)):
        if folder is None:
            continue
        checkpoint, meter = jaxdiff.load(folder), Meter()
        for way in ways:
            with progress(f"{model} {way}", n) as update:
                options: dict[str, Any] = asked | {"meter": meter, "progress": update}
                if model == "insertion":
                    report = evaluate_insertion(checkpoint, task, WAYS.parse(way), **options)
                else:
                    decoder = jaxdiff.Decoder(policy=jaxdiff.policies.parse(way))
                    report = evaluate(checkpoint, task, decoder, **options)
            rows.append({"model": model, "way": way, **numbers(report)})
            note(f"{model} {way}: {rows[-1]['accuracy']:.1%} right, {rows[-1]['nfe']:.2f} forwards")
    out.parent.mkdir(exist_ok=True)
    with replaced_file(out) as new:
        write_object(new, {"task": task, "split": split, "n": n, "rows": rows})


def numbers(report: Report) -> dict[str, Any]:
    """What is told of an evaluation; `right_length`: answers as long as the right one."""
    lengths = [len(text) == len(problem.answer) for text, problem in zip(report.texts, report.problems, strict=True)]
    names = ("accuracy", "accuracy_low", "accuracy_high", "nfe", "work", "tpf", "seconds", "not_finite")
    summary = report.summary()
    return {name: summary[name] for name in names} | {"right_length": sum(lengths) / len(lengths)}


if __name__ == "__main__":
    typer.run(main)
