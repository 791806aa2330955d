"""What a row must hold to be looked at, and what the page makes of it."""

from __future__ import annotations

import collections
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxdiff.decode.result import Reason, Result
from jaxdiff.files import refusing
from jaxdiff.types import InputError

CUT = "\ufffd"  # what a tokenizer gives for the bytes of a character that are not all there
GIVEN, PAST = -1, -2  # in place of a forward: the position was given; it lies past the end
SEVERAL = -1  # in place of a decode's place: several wrote the token, in forwards of one number
OPTION = "--for-show"  # of `jaxdiff generate`: rows hold all of these
NEEDED = {
    "token_ids": "a list of whole numbers",
    "pieces": "a text for each of token_ids, or null",
    "commit_step": "for each of token_ids a forward below nfe, or -1",
    "nfe": "a number",
    "cheap": "a number",
    "work": "a number",
    "generated_tokens": "a number",
    "decoder": "an object that names the policy",
}


def pieces_of(tokens: Sequence[int], fast: Any) -> list[str | None]:
    """The text of each token; of a special one none. Where a character is cut over several tokens, the last one has it,
    and None stands for the others.

    A token's text is what it adds to that of a few tokens before it.

    Args:
        fast: a transformers.PreTrainedTokenizerFast, or one that does the same.
    """
    pieces: list[str | None] = []
    before = read = 0  # the text of tokens[before:read] is known to be whole
    for count in range(1, len(tokens) + 1):
        known = fast.decode(tokens[before:read], skip_special_tokens=True)
        text = fast.decode(tokens[before:count], skip_special_tokens=True)
        if text.endswith(CUT) and count < len(tokens):
            pieces.append(None)
            continue
        pieces.append(text[len(known) :])
        if pieces[-1]:  # a token without text would leave the next one without a neighbour, and without its space
            before, read = read, count
        else:
            read = count
    return pieces


def row_of(
    result: Result,
    row: int,
    tokenizer: Any,
    decoder: Mapping[str, Any],
    *,
    id: Any = None,
    prompt_text: str | None = None,
    block_lead: int = 0,
) -> dict[str, Any]:
    """A row of a `Result` of prompts, as `jaxdiff generate --for-show` writes it.

    Args:
        tokenizer: the checkpoint's; None: tokens are shown by their ids.
        decoder: how it was decoded, in words and numbers: {"policy": "threshold:tau=0.9", "block_length": 32}.
        id: rows of one id stand side by side.
        block_lead: positions of the first block that the prompt holds: where a model attends in blocks, which are
            counted from the prompt's first token, the prompt's length modulo the block length.
    """
    steps = np.asarray(result.commit_step[row])
    tokens = np.asarray(result.tokens[row])[-steps.size :].tolist()
    return {
        "id": id,
        "token_ids": tokens,
        "pieces": None if tokenizer is None else pieces_of(tokens, tokenizer.fast),
        "commit_step": steps.tolist(),
        "log_prob": np.asarray(result.log_prob[row], float).tolist(),
        "nfe": int(result.nfe[row]),
        "cheap": int(result.cheap[row]),
        "work": float(result.work[row]),
        "generated_tokens": int(result.lengths[row]),
        "reason": Reason(int(result.reason[row])).name.lower(),
        "prompt_text": prompt_text,
        "block_lead": block_lead,
        "decoder": dict(decoder),
    }


def decode_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """What the page draws of a row: names are short, and numbers rounded, for a page holds many.

    Raises InputError for a row that lacks something, or holds something else than `NEEDED` says.
    """
    if lacking := [name for name in NEEDED if name not in row]:
        raise InputError(f"found no {', '.join(lacking)}; write the rows with jaxdiff generate {OPTION}")
    ids, pieces, steps, log_prob = row["token_ids"], row["pieces"], row["commit_step"], row.get("log_prob")
    ids = ids if isinstance(ids, list) else []
    if pieces is None:  # a model without a tokenizer
        pieces = [f"{token} " for token in ids]
    numbers = {name: type(row[name]) in (int, float) for name in ("nfe", "cheap", "work", "generated_tokens")}
    forwards = row["nfe"] if numbers["nfe"] else 0
    fits = {
        "token_ids": bool(ids) and _list(ids, ids, int),
        "pieces": _list(pieces, ids, str, type(None)),
        **numbers,
        "commit_step": _list(steps, ids, int) and all(-1 <= step < forwards for step in steps),
        "decoder": isinstance(row["decoder"], dict) and isinstance(row["decoder"].get("policy"), str),
    }
    if wrong := next((name for name, fit in fits.items() if not fit), None):
        raise InputError(f"{wrong}: found {str(row[wrong])[:40]!r}, expected {NEEDED[wrong]}")
    if log_prob is not None and not _list(log_prob, ids, int, float, type(None)):
        raise InputError("log_prob: expected a number for each of token_ids, or null; or leave it out")
    lead = row.get("block_lead", 0)
    if type(lead) is not int or lead < 0:
        raise InputError(f"block_lead: found {str(lead)[:40]!r}, expected a whole number from 0; or leave it out")
    settings = dict(row["decoder"])
    return {
        "label": settings.pop("policy"),
        "settings": [[name.replace("_", " "), value] for name, value in settings.items() if value is not None],
        "block": settings.get("block_length"),
        "lead": lead,
        "nfe": row["nfe"],
        "cheap": row["cheap"],
        "work": round(row["work"], 2),
        "tokens": row["generated_tokens"],
        "ids": ids,
        "pieces": pieces,
        "steps": _steps(row, steps),
        "log_prob": log_prob and [_rounded(one) for one in log_prob],
    }


def compare(decodes: Sequence[dict[str, Any]]) -> None:
    """Adds to decodes of one prompt (of `decode_of`), which stand side by side, what tells them apart.

    name: the policy; where several have the same, with those of their settings that differ.
    first: for each position which decode, by its place from 0, was the earliest, by the number of its forward, to write
        the token that stands there in this one; SEVERAL where more than one were; None for what was not decoded.
    other: positions at which the first decode has another token, or none.

    A decode that stands alone has no `first` and no `other`.
    """
    for decode in decodes:
        alike = [one["settings"] for one in decodes if one["label"] == decode["label"]]
        apart = [setting for setting in decode["settings"] if not all(setting in one for one in alike)]
        decode["name"] = ", ".join([decode["label"], *(f"{name} {value}" for name, value in apart)])
    if len(decodes) < 2:
        return
    wrote: dict[tuple[int, int], list[tuple[int, int]]] = collections.defaultdict(list)
    for place, decode in enumerate(decodes):
        for at, (token, step) in enumerate(zip(decode["ids"], decode["steps"], strict=True)):
            if step >= 0:
                wrote[at, token].append((step, place))
    ids = decodes[0]["ids"]
    for decode in decodes:
        own = list(enumerate(decode["ids"]))
        decode["first"] = [_earliest(wrote[one]) if decode["steps"][one[0]] >= 0 else None for one in own]
        decode["other"] = [at for at, token in own if at >= len(ids) or token != ids[at]]


def _earliest(wrote: Sequence[tuple[int, int]]) -> int:
    """The decode of the lowest forward, of (forward, decode) of each; SEVERAL where more than one have it."""
    earliest = min(wrote)[0]
    places = [place for step, place in wrote if step == earliest]
    return places[0] if len(places) == 1 else SEVERAL


def _list(value: Any, like: Any, *kinds: type) -> bool:
    """Whether it is a list as long as `like`, of these kinds alone."""
    return isinstance(value, list) and len(value) == len(like) and all(type(one) in kinds for one in value)


def _rounded(log_prob: float | int | None) -> float | None:
    return None if log_prob is None or not math.isfinite(log_prob) else round(float(log_prob), 4)


def _steps(row: Mapping[str, Any], steps: list[int]) -> list[int]:
    """The forwards, with what was given told from what lies past the end: of a canvas, whatever is in no hole."""
    filled = row.get("filled")
    if filled is None:
        return [step if step >= 0 else PAST for step in steps]
    with refusing("filled", "leave it as generate wrote it"):
        holes = {column for run in filled for column in range(run["start"], run["end"])}
    return [step if step >= 0 else PAST if column in holes else GIVEN for column, step in enumerate(steps)]
