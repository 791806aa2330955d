"""Requests, one or a JSONL file of them, and their answers: read, decoded in slots, written as a whole."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import jax

from jaxdiff.checkpoint import Checkpoint
from jaxdiff.cli.options import Decoding
from jaxdiff.decode import Decoder
from jaxdiff.files import replaced_file
from jaxdiff.parallel.mesh import parse_mesh
from jaxdiff.serve import Answer, Meter, Refusal, Request, check_request, decode_stream
from jaxdiff.types import InputError

Row = Request | Refusal
KINDS = ("prompt", "prompt_ids", "canvas_ids")


@dataclasses.dataclass(frozen=True)
class Job:
    """What a run of `generate` is beside its decoding. `log_prob`: rows hold the tokens' log-softmax too."""

    seed: int
    slots: int
    log_prob: bool = False


def prompt_ids(checkpoint: Checkpoint, text: str) -> list[int]:
    """The ids of a text prompt, in the folder's chat template.

    Raises InputError for an empty text, and where the folder has no tokenizer.
    """
    if not text.strip():
        raise InputError("prompt: found an empty text, expected at least one word")
    if checkpoint.tokenizer is None:
        raise InputError(
            f"prompt: {checkpoint.path} has no tokenizer.json; add one, or give prompt_ids in a JSONL file (--in)"
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"prompt: found {text!r}, expected text that UTF-8 can hold") from error
    return checkpoint.tokenizer.prompt(text)


def check(checkpoint: Checkpoint, request: Request, decoding: Decoding) -> None:
    """Raises the InputError that this request is refused with."""
    asked = Decoder(block_length=decoding.block_length)  # the policy's steps hang on the length, which is checked here
    check_request(checkpoint.model, request, decoding.gen_length, asked)
    if request.is_canvas:
        decoding.decoder(checkpoint.model, len(request.ids), canvas=True)
        mask = checkpoint.model.config.mask_token_id
        if mask not in request.ids:
            raise InputError(f"canvas_ids: found no mask (id {mask}), expected a hole to fill")


def read(path: Path, checkpoint: Checkpoint, decoding: Decoding) -> list[Row]:
    """The rows of a JSONL file, in its order; blank lines are skipped, and a row without an id gets its line number.

    Raises InputError where the decoding fits no prompt: that is the command line's mistake, not a row's.
    """
    lines = path.read_bytes().split(b"\n")
    rows = [_parse(number, line, checkpoint) for number, line in enumerate(lines) if line.strip()]
    if any(isinstance(row, Request) and not row.is_canvas for row in rows):
        decoding.decoder(checkpoint.model, decoding.gen_length)
    for place, row in enumerate(rows):
        if isinstance(row, Request):
            try:
                check(checkpoint, row, decoding)
            except InputError as error:
                rows[place] = Refusal(row.number, row.id, str(error))
    return rows


def in_order(rows: Sequence[Row]) -> list[Row]:
    """The order in which rows are decoded: refusals, prompts, canvases by their length, and the longest prompts first.

    Rows that are alike share the slots, and the longest prompt shows at once whether memory holds it.
    """
    return sorted(rows, key=lambda row: (-1, 0) if isinstance(row, Refusal) else (_canvas_length(row), -len(row.ids)))


def answers(
    checkpoint: Checkpoint, requests: Sequence[Request], decoding: Decoding, job: Job, meter: Meter
) -> Iterator[Answer]:
    """Decode requests that were checked, in `in_order`; each answer comes when it is there."""
    for canvas, rows in groupby(in_order(requests), key=_canvas_length):
        alike = [row for row in rows if isinstance(row, Request)]
        length = canvas or decoding.gen_length
        yield from decode_stream(  # type: ignore[misc]
            *(checkpoint.model, checkpoint.params, alike),
            decoding.decoder(checkpoint.model, length, canvas=bool(canvas)),
            slots=job.slots,
            gen_length=length,
            key=jax.random.key(job.seed),
            mesh=parse_mesh(decoding.mesh),
            meter=meter,
        )


def _canvas_length(row: Row) -> int:
    return len(row.ids) if isinstance(row, Request) and row.is_canvas else 0


def row_of(checkpoint: Checkpoint, done: Answer | Refusal, *, log_prob: bool = False) -> dict[str, Any]:
    """One line of the output file."""
    if isinstance(done, Refusal):
        return {"id": done.id, "error": done.error}
    row = {
        "id": done.request.id,
        "text": None if checkpoint.tokenizer is None else checkpoint.tokenizer.decode(done.tokens),
        "token_ids": done.tokens.tolist(),
        "nfe": done.nfe,
        "work": done.work,
        "commit_step": done.commit_step.tolist(),
        "seconds": done.seconds,
    }
    return row | ({"log_prob": done.log_prob.tolist()} if log_prob else {})


def check_writable(path: Path) -> None:
    """Raises InputError for a path that `write` could not, or must not, put a file at."""
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise InputError(f"out: {path.parent} is no folder that can be written to; make it or name another")
    if path.exists() and not path.is_file():  # renaming over a device or a folder would replace it
        raise InputError(f"out: {path} is not a file; name another")


def write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """The whole file or none of it: written beside its place, then renamed."""
    with replaced_file(path) as new:
        new.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _parse(number: int, line: bytes, checkpoint: Checkpoint) -> Row:
    name: Any = number + 1
    try:
        try:
            row = json.loads(line.decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            raise InputError(f"not JSON ({error})") from error
        if not isinstance(row, dict):
            raise InputError(f"found {type(row).__name__}, expected a JSON object")
        name = name if row.get("id") is None else row["id"]
        kinds = [kind for kind in KINDS if kind in row]
        if len(kinds) != 1:
            raise InputError(f"found {' and '.join(kinds) or 'no prompt'}, expected one of {', '.join(KINDS)}")
        (kind,) = kinds
        value = row[kind]
        if kind == "prompt":
            if not isinstance(value, str):
                raise InputError(f"prompt: found {type(value).__name__}, expected a text")
            return Request(prompt_ids(checkpoint, value), name, number)
        if not isinstance(value, list) or not all(type(i) is int for i in value):
            raise InputError(f"{kind}: expected a list of whole numbers")
        return Request(value, name, number, is_canvas=kind == "canvas_ids")
    except InputError as error:
        return Refusal(number, name, str(error))
