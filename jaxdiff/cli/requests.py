"""Requests, one or a JSONL file of them, and their answers: read, decoded in batches, written as a whole."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from jaxdiff.checkpoint import Checkpoint
from jaxdiff.cli.options import Decoding
from jaxdiff.decode import Timed, decode, infill
from jaxdiff.decode.api import block_of, check_ids, check_lengths
from jaxdiff.decode.many import batches, pad_to_bucket, request_keys
from jaxdiff.types import InputError

KINDS = ("prompt", "prompt_ids", "canvas_ids")


@dataclasses.dataclass(frozen=True)
class Request:
    number: int  # from 0, its line in the file: a request's randomness hangs on this, not on its batch
    id: Any
    ids: list[int]
    is_canvas: bool = False


@dataclasses.dataclass(frozen=True)
class Refusal:
    """A row that cannot be decoded, and why."""

    number: int
    id: Any
    error: str


@dataclasses.dataclass(frozen=True)
class Answer:
    request: Request
    tokens: Int[np.ndarray, " G"]  # the generated canvas, untrimmed
    commit_step: Int[np.ndarray, " G"]
    nfe: int
    length: int  # generated tokens through the first end-of-text
    near_ties: int
    seconds: float  # of the whole batch that it was decoded in, warm


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


def text_of(checkpoint: Checkpoint, answer: Answer) -> str | None:
    """The answer's text up to its first end-of-text; None where the folder has no tokenizer."""
    return None if checkpoint.tokenizer is None else checkpoint.tokenizer.decode(answer.tokens)


def check(checkpoint: Checkpoint, request: Request, decoding: Decoding) -> None:
    """Raises now, and for this request alone, the InputError that its batch would raise."""
    model, length = checkpoint.model, len(request.ids)
    if not length:
        raise InputError("prompt: found no ids, expected at least one")
    if request.is_canvas:
        block = block_of(model, decoding.block_length, default=length)
        if length % block:
            raise InputError(f"canvas_ids: found {length} ids in blocks of {block}, expected whole blocks")
        decoding.arguments(model, length, canvas=True)
        check_lengths(model, 0, length, block)
        if model.config.mask_token_id not in request.ids:
            raise InputError(f"canvas_ids: found no mask (id {model.config.mask_token_id}), expected a hole to fill")
    else:
        block = block_of(model, decoding.block_length)
        check_lengths(model, length, decoding.gen_length, block)
    check_ids(model, np.asarray([request.ids]), np.zeros(1, np.int32), masks_allowed=request.is_canvas)


def read(path: Path, checkpoint: Checkpoint, decoding: Decoding) -> list[Request | Refusal]:
    """The rows of a JSONL file, in its order; blank lines are skipped, and a row without an id gets its line number.

    Raises InputError where the decoding fits no prompt: that is the command line's mistake, not a row's.
    """
    lines = path.read_bytes().split(b"\n")
    rows = [_parse(number, line, checkpoint) for number, line in enumerate(lines) if line.strip()]
    if any(isinstance(row, Request) and not row.is_canvas for row in rows):
        decoding.arguments(checkpoint.model, decoding.gen_length)
    return [_checked(row, checkpoint, decoding) for row in rows]


def answers(
    checkpoint: Checkpoint, requests: Sequence[Request], decoding: Decoding, *, batch_size: int, seed: int, run: Timed
) -> Iterator[list[Answer]]:
    """Decode a batch at a time: prompts of mixed lengths together, a canvas with those of its own length."""

    def canvas_length(request: Request) -> int:
        return len(request.ids) if request.is_canvas else 0

    for _, alike in groupby(sorted(requests, key=canvas_length), key=canvas_length):
        group = list(alike)
        for rows in batches(len(group), batch_size):
            batch = [group[i] for i in rows]
            keys = request_keys(seed, np.asarray([request.number for request in batch]))
            yield _decode(checkpoint, batch, decoding, keys, run)[: len(set(rows.tolist()))]


def row_of(checkpoint: Checkpoint, done: Answer | Refusal) -> dict[str, Any]:
    """One line of the output file."""
    if isinstance(done, Refusal):
        return {"id": done.id, "error": done.error}
    return {
        "id": done.request.id,
        "text": text_of(checkpoint, done),
        "token_ids": done.tokens.tolist(),
        "nfe": done.nfe,
        "commit_step": done.commit_step.tolist(),
        "seconds": done.seconds,
    }


def check_writable(path: Path) -> None:
    """Raises InputError for a path that `write` could not, or must not, put a file at."""
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise InputError(f"out: {path.parent} is no folder that can be written to; make it or name another")
    if path.exists() and not path.is_file():  # renaming over a device or a folder would replace it
        raise InputError(f"out: {path} is not a file; name another")


def write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """The whole file or none of it: written beside its place, then renamed."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        scratch.write_text("".join(json.dumps(row) + "\n" for row in rows))
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def _parse(number: int, line: bytes, checkpoint: Checkpoint) -> Request | Refusal:
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
            return Request(number, name, prompt_ids(checkpoint, value))
        if not isinstance(value, list) or not all(type(i) is int for i in value):
            raise InputError(f"{kind}: expected a list of whole numbers")
        return Request(number, name, value, is_canvas=kind == "canvas_ids")
    except InputError as error:
        return Refusal(number, name, str(error))


def _checked(row: Request | Refusal, checkpoint: Checkpoint, decoding: Decoding) -> Request | Refusal:
    if isinstance(row, Refusal):
        return row
    try:
        check(checkpoint, row, decoding)
    except InputError as error:
        return Refusal(row.number, row.id, str(error))
    return row


def _decode(checkpoint: Checkpoint, batch: list[Request], decoding: Decoding, keys: Any, run: Timed) -> list[Answer]:
    """One batch of prompts, or of canvases of one length."""
    model, params = checkpoint.model, checkpoint.params
    before = run.seconds
    if batch[0].is_canvas:
        width, length = 0, len(batch[0].ids)
        canvas = np.asarray([request.ids for request in batch], np.int32)
        arguments = decoding.arguments(model, length, canvas=True)
        result = infill(model, params, canvas, key=keys, run=run, **arguments)
    else:
        room = model.config.max_sequence_length - decoding.gen_length
        prompts, origin = pad_to_bucket([request.ids for request in batch], model.config.eos_token_id, room)
        width, length = prompts.shape[1], decoding.gen_length
        arguments = decoding.arguments(model, length)
        result = decode(model, params, prompts, origin=origin, gen_length=length, key=keys, run=run, **arguments)
    return [
        Answer(request, tokens, commit_step, int(nfe), int(length), int(near_ties), run.seconds - before)
        for request, tokens, commit_step, nfe, length, near_ties in zip(
            batch,
            np.asarray(result.tokens)[:, width:],
            np.asarray(result.commit_step),
            np.asarray(result.nfe),
            np.asarray(result.lengths),
            np.asarray(result.near_ties),
            strict=True,
        )
    ]
