"""`jaxdiff generate`: one prompt to the terminal, or one JSONL file to another."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from jaxdiff.checkpoint import SHIPPED
from jaxdiff.cli import options, requests
from jaxdiff.cli.options import Decoding
from jaxdiff.cli.show import note, progress, stderr
from jaxdiff.cli.watch import replay
from jaxdiff.decode import Timed
from jaxdiff.types import InputError


def generate(
    prompt: Annotated[str | None, typer.Argument(help="The text to answer.", show_default=False)] = None,
    in_file: Annotated[
        Path | None, typer.Option("--in", metavar="JSONL", help="Rows of id and prompt, prompt_ids or canvas_ids.")
    ] = None,
    out_file: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="JSONL",
            help="Rows of id, text, token_ids, nfe, commit_step, seconds (of its batch); or id, error.",
        ),
    ] = None,
    model: options.Model = SHIPPED,
    policy: options.Policy = "fixed",
    cache: options.Cache = "none",
    stop: options.Stop = "none",
    gen_length: options.GenLength = 256,
    block_length: options.BlockLength = None,
    steps: options.Steps = None,
    temperature: options.Temperature = 0.0,
    top_p: options.TopP = None,
    top_k: options.TopK = None,
    cfg_scale: options.CfgScale = None,
    forbid_eos: options.ForbidEos = False,
    defer_eos: options.DeferEos = False,
    seed: options.Seed = 0,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Rows of a file decoded together.")] = 8,
    mesh: options.Mesh = "1x1",
    dtype: options.Dtype = None,
    watch: Annotated[bool, typer.Option("--watch", help="Show the masks turn into text.")] = False,
    as_json: options.Json = False,
) -> int:
    """Generate text after a prompt, or after (or into) each row of a file."""
    decoding = Decoding(
        *(model, policy, stop, steps, gen_length, block_length),
        *(temperature, top_p, top_k, cfg_scale, forbid_eos, defer_eos, cache, mesh, dtype),
    )
    if (prompt is None) == (in_file is None):
        raise InputError("give a PROMPT or --in FILE.jsonl, one of the two")
    if (in_file is None) != (out_file is None):
        raise InputError("--in and --out go together: name the JSONL file to read and the one to write")
    if watch and in_file is not None:
        raise InputError("--watch shows a single PROMPT; leave it out with --in")
    if in_file is not None and out_file is not None:
        return _file(in_file, out_file, decoding, seed, batch_size, as_json)
    return _one(str(prompt), decoding, seed, watch, as_json)


def _one(prompt: str, decoding: Decoding, seed: int, watch: bool, as_json: bool) -> int:
    checkpoint = decoding.load()
    decoding.arguments(checkpoint.model, decoding.gen_length)
    request = requests.Request(0, None, requests.prompt_ids(checkpoint, prompt))
    requests.check(checkpoint, request, decoding)
    run = Timed()
    ((answer,),) = requests.answers(checkpoint, [request], decoding, batch_size=1, seed=seed, run=run)
    if watch:
        replay(answer.tokens, answer.commit_step, checkpoint.tokenizer, stderr())
    row, numbers = requests.row_of(checkpoint, answer), _numbers([answer], run)
    if as_json:
        del row["id"]
        print(json.dumps(row | numbers | {"seed": seed}))
    else:
        print(row["text"])
        note(_line(numbers))
    return 0


def _file(in_file: Path, out_file: Path, decoding: Decoding, seed: int, batch_size: int, as_json: bool) -> int:
    """Returns 1 if a row was refused, else 0."""
    requests.check_writable(out_file)
    checkpoint = decoding.load()
    rows = requests.read(in_file, checkpoint, decoding)
    wanted = [row for row in rows if isinstance(row, requests.Request)]
    refused = [row for row in rows if isinstance(row, requests.Refusal)]
    for row in refused:
        note(f"{in_file} line {row.number + 1}: {row.error}", style="red")
    run = Timed()
    done: dict[int, requests.Answer] = {}
    with progress("rows", len(wanted)) as update:
        for batch in requests.answers(checkpoint, wanted, decoding, batch_size=batch_size, seed=seed, run=run):
            done |= {answer.request.number: answer for answer in batch}
            update(len(done), sum(answer.length for answer in done.values()), run.seconds)
    ended = [row if isinstance(row, requests.Refusal) else done[row.number] for row in rows]
    requests.write(out_file, [requests.row_of(checkpoint, row) for row in ended])
    numbers = _numbers(list(done.values()), run)
    if as_json:
        print(json.dumps({"rows": len(done), "refused": len(refused), **numbers, "seed": seed}))
    else:
        note(f"{len(done)} rows written to {out_file}, {len(refused)} refused · {_line(numbers)}")
    return 1 if refused else 0


def _numbers(answers: Sequence[requests.Answer], run: Timed) -> dict[str, Any]:
    """What decoding these answers took; NFE and tokens are totals over the rows."""
    nfe, tokens = sum(answer.nfe for answer in answers), sum(answer.length for answer in answers)
    return {
        "nfe": nfe,
        "generated_tokens": tokens,
        "tpf": tokens / max(nfe, 1),
        "near_ties": sum(answer.near_ties for answer in answers),
        "seconds": run.seconds,
        "compile_seconds": run.compile_seconds,
    }


def _line(numbers: dict[str, Any]) -> str:
    return (
        f"NFE {numbers['nfe']} · {numbers['generated_tokens']} tokens · TPF {numbers['tpf']:.2f} · "
        f"{numbers['seconds']:.2f} s · compiling {numbers['compile_seconds']:.2f} s"
    )
