"""`jaxdiff demo`: one held-out problem decoded several ways, side by side."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

import jax
import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from jaxdiff.bench.clock import Median, in_turn
from jaxdiff.checkpoint import SHIPPED, model_folder
from jaxdiff.cli import options
from jaxdiff.cli.options import Decoding
from jaxdiff.cli.pages import write_page
from jaxdiff.cli.show import note
from jaxdiff.cli.tally import trusted
from jaxdiff.decode import Timed, pad_prompts
from jaxdiff.decode.api import prepare
from jaxdiff.files import check_writable, json_line, read_object
from jaxdiff.show import row_of
from jaxdiff.tasks import Problem, task
from jaxdiff.types import InputError

TASK, ROUNDS = "gsm_symbolic", 3
PROBLEMS = "demo.json"  # a few held-out problems beside the model, so that the task's generator is not needed
# What each way is called, its policy and its stopper; all but the first stop at the first end-of-text.
WAYS = (
    ("one token a step, the whole canvas", "fixed", "none"),
    ("one token a step", "fixed", "eos"),
    ("threshold 0.9", "threshold:tau=0.9", "eos"),
    ("learned filter", "learned", "eos"),
)


def demo(
    model: options.Model = SHIPPED,
    number: Annotated[int, typer.Option("--problem", min=0, help=f"Which of those in the folder's {PROBLEMS}.")] = 0,
    gen_length: options.GenLength = 256,
    html: options.Html = None,
    as_json: options.Json = False,
) -> int:
    """Decode one held-out problem one token a step, by a threshold and by the learned filter, side by side."""
    if html is not None:
        check_writable(html, what="html")
    model = options.pinned(model)
    decodings = {
        name: Decoding(model=model, policy=policy, stop=stop, gen_length=gen_length) for name, policy, stop in WAYS
    }
    problem = _problem(model, number)
    checkpoint = next(iter(decodings.values())).load()
    tokenizer, source = checkpoint.tokenizer_for(TASK), task(TASK)
    prompts, origin = pad_prompts([tokenizer.prompt(problem.question)], fill=tokenizer.eos_id)
    timed = Timed()
    calls, results = {}, {}
    for name, decoding in decodings.items():
        decoder = decoding.decoder(checkpoint.model, gen_length)
        given = checkpoint.model, checkpoint.params, prompts, decoder
        calls[name] = prepare(*given, gen_length=gen_length, origin=origin)

    def run(name: str) -> None:
        results[name] = timed.run(calls[name])

    note("compiling")
    seconds = in_turn({name: partial(run, name) for name in calls}, ROUNDS)
    rows = []
    for name, result in results.items():
        text = tokenizer.decode(np.asarray(result.tokens)[0, prompts.shape[1] :])
        rows.append(
            {
                "way": name,
                "policy": decodings[name].policy,
                "stop": decodings[name].stop,
                "nfe": int(result.nfe[0]),
                "work": float(result.work[0]),
                "seconds": Median.of(seconds[name]).median,
                "tokens": int(result.lengths[0]),
                "not_finite": int(result.not_finite[0]),
                "correct": bool(source.verify(text, problem)),
                "text": text,
            }
        )
    if html is not None:
        told = {name: decoding.told(checkpoint.model) for name, decoding in decodings.items()}
        question = problem.question
        write_page(html, [row_of(results[name], 0, tokenizer, told[name], prompt_text=question) for name in decodings])
    if as_json:
        setting = {"question": problem.question, "gen_length": gen_length, "problem": number}
        print(json_line(setting | {"compile_seconds": timed.compile_seconds, "ways": rows}))
    else:
        _show(problem.question, rows, timed.compile_seconds)
    met = sum(int(result.not_finite[0]) for result in results.values())
    return 0 if trusted(model, "problem", {number: met}) else 1


def _problem(model: str, number: int) -> Problem:
    """One of the problems that lie beside the model. Raises InputError where there is none."""
    file = model_folder(model, weights=False) / PROBLEMS
    if not file.is_file():
        raise InputError(f"demo: no {PROBLEMS} in {file.parent}; take the model that ships ({SHIPPED})")
    found = read_object(file).get("problems", [])
    if number >= len(found):
        raise InputError(f"problem: found {number}, expected 0 to {len(found) - 1}")
    return Problem(question=found[number]["question"], worked="", answer=found[number]["answer"])


def _show(question: str, rows: list[dict[str, Any]], compile_seconds: float) -> None:
    console = Console()
    console.print(question, markup=False, highlight=False)
    table = Table("", "NFE", "seconds", "tokens", "tokens / NFE", "right", box=None, title_justify="left")
    for column in table.columns[1:5]:
        column.justify = "right"
    for row in rows:
        rate, right = f"{row['tokens'] / row['nfe']:.2f}", "yes" if row["correct"] else "no"
        table.add_row(row["way"], str(row["nfe"]), f"{row['seconds']:.3f}", str(row["tokens"]), rate, right)
    console.print()
    console.print(table)
    for text in dict.fromkeys(row["text"] for row in rows):
        names = ", ".join(row["way"] for row in rows if row["text"] == text)
        console.print(f"\n{names}:", style="dim")
        console.print(text, markup=False, highlight=False)
    device = jax.devices()[0].device_kind
    note(f"seconds: the median of {ROUNDS} runs in turn on {device}; compiling {compile_seconds:.1f} s")
