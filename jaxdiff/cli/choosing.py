"""Requests that give the answers to choose from: read, compared a few together, each a row with probabilities."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import numpy as np

from jaxdiff.checkpoint import Checkpoint
from jaxdiff.cli.options import Decoding
from jaxdiff.convert.prompts import Tokenizer
from jaxdiff.decode import Choices, arrays
from jaxdiff.decode.batches import pad_to_bucket, request_keys
from jaxdiff.decode.choose import METHODS, Asking, prepare_choose
from jaxdiff.decode.likelihood import SAMPLES
from jaxdiff.decode.result import Reason
from jaxdiff.parallel.mesh import parse_mesh
from jaxdiff.serve import Answer, Meter, Request
from jaxdiff.types import InputError


@dataclasses.dataclass(frozen=True)
class Asked:
    """A request, and the token ids of the answers to choose from."""

    request: Request
    choices: tuple[tuple[int, ...], ...]

    @property
    def number(self) -> int:
        return self.request.number

    @property
    def id(self) -> Any:
        return self.request.id

    @property
    def ids(self) -> Any:
        return self.request.ids

    @property
    def shape(self) -> tuple[Any, ...]:
        """What a program hangs on, as far as requests can share one."""
        canvas = len(self.ids) if self.request.is_canvas else 0
        return canvas, len(self.choices), max(map(len, self.choices))


@dataclasses.dataclass(frozen=True)
class How:
    """What `--choose-by` and `--samples` say."""

    method: str = METHODS[0]
    samples: int = SAMPLES

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise InputError(f"choose-by: found {self.method!r}, expected one of {', '.join(METHODS)}")


def choices_of(tokenizer: Tokenizer | None, given: Any, *, special: bool, end: Sequence[int]) -> tuple[Any, ...]:
    """The ids of choices: texts, each followed by `end`, or lists of ids, as they are.

    Raises InputError for what is no list of these, for an empty one, and for texts without a tokenizer.
    """
    if not isinstance(given, list) or not given:
        found = "none" if given == [] else type(given).__name__
        raise InputError(f"choices: found {found}, expected a list of texts, or of lists of ids; give the answers")
    return tuple(_ids(tokenizer, one, special, end) for one in given)


def _ids(tokenizer: Tokenizer | None, one: Any, special: bool, end: Sequence[int]) -> tuple[int, ...]:
    if isinstance(one, list) and all(type(token) is int for token in one):
        return tuple(one)
    if not isinstance(one, str):
        raise InputError(f"choices: found {str(one)!r:.40}, expected a text or a list of ids")
    if not one:
        raise InputError("choices: found an empty text, expected at least one character; leave it out")
    if tokenizer is None:
        raise InputError("choices: found texts, but the model has no tokenizer.json; add one, or give lists of ids")
    return (*tokenizer.part(one, special), *end)


def check(checkpoint: Checkpoint, row: Asked, decoding: Decoding, how: How) -> None:
    """Raises the InputError that this request is refused with."""
    model, request = checkpoint.model, row.request
    if not len(request.ids):
        raise InputError("prompt: found no ids, expected at least one")
    ids = np.asarray([request.ids])
    arrays.check_ids(model, ids, np.zeros(1, np.int32), masks_allowed=request.is_canvas, alone=True)
    mask = model.config.mask_token_id
    if request.is_canvas and mask not in request.ids:
        raise InputError(f"canvas_ids: found no mask (id {mask}), expected a slot for the choices")
    prepare(checkpoint, [row], decoding, how, 0)


def prepare(checkpoint: Checkpoint, rows: Sequence[Asked], decoding: Decoding, how: How, seed: int) -> Asking:
    """One call of `choose`, for requests of as many choices each; canvases of one length. Raises as that.

    A prompt's slot is as long as its longest choice and one token more, and one block unless the command line says
    another: `--gen-length` is of what is generated freely.
    """
    model, tokenizer = checkpoint.model, checkpoint.tokenizer
    if rows[0].request.is_canvas:
        decoder = decoding.decoder(model, len(rows[0].ids), canvas=True, tokenizer=tokenizer)
        prompts, origin = np.asarray([row.ids for row in rows]), None
    else:
        decoder = decoding.decoder(model, decoding.gen_length, tokenizer=tokenizer)
        decoder = dataclasses.replace(decoder, block_length=decoding.block_length)
        slot = max(len(choice) for row in rows for choice in row.choices) + 1
        room = max(model.config.max_sequence_length - slot, *(len(row.ids) for row in rows))
        prompts, origin = pad_to_bucket([row.ids for row in rows], model.config.eos_token_id, room)
    return prepare_choose(
        *(model, checkpoint.params, prompts, [row.choices for row in rows], decoder),
        method=how.method,
        origin=origin,
        samples=how.samples,
        key=request_keys(seed, np.asarray([row.number for row in rows])),
        mesh=parse_mesh(decoding.mesh),
    )


def answers(
    checkpoint: Checkpoint, rows: Sequence[Asked], decoding: Decoding, how: How, *, seed: int, slots: int, meter: Meter
) -> Iterator[tuple[Answer, dict[str, Any]]]:
    """The answers of requests that were checked, as many together as have their choices in the `slots`; and what their
    rows hold beside: the number of the best choice, and what is known of each.
    """
    for (_, count, _), alike in groupby(sorted(rows, key=lambda row: row.shape), key=lambda row: (*row.shape[:2], 0)):
        left = list(alike)
        size = max(slots // count, 1)
        for first in range(0, len(left), size):
            some = left[first : first + size]
            asking, before = prepare(checkpoint, some, decoding, how, seed), meter.seconds
            found = asking.run(meter.call)
            for place, row in enumerate(some):
                answer = _answer(row, asking, found, place, meter.seconds - before)
                yield answer, {"best": int(found.best[place]), "choices": _told(checkpoint, row, found, place)}


def _told(checkpoint: Checkpoint, row: Asked, found: Choices, place: int) -> list[dict[str, Any]]:
    numbers = (found.prob, found.log_prob, found.error, found.nfe)
    return [
        {
            "text": None if checkpoint.tokenizer is None else checkpoint.tokenizer.decode(tokens),
            "token_ids": list(tokens),
            **{
                name: each[place, at].item()
                for name, each in zip(("prob", "log_prob", "error", "nfe"), numbers, strict=True)
            },
        }
        for at, tokens in enumerate(row.choices)
    ]


def _answer(row: Asked, asking: Asking, found: Choices, place: int, seconds: float) -> Answer:
    request, around, end = row.request, found.around, found.ends[place]
    tokens = found.tokens[place, asking.pairs.first : end]
    if request.is_canvas:  # as it was filled: its slot is as long as the best choice
        opened = asking.pairs.of(found.best).canvas[place, :end]
        request = dataclasses.replace(request, ids=opened.tolist())
    numbers: dict[str, Any] = {
        "cheap": 0,
        "guide_nfe": 0,
        "reason": Reason.FULL,
        "nfe": 0,
        "work": 0.0,
        "near_ties": 0,
        "not_finite": 0,
    }
    commit_step, log_prob = np.full(len(tokens), -1), np.zeros(len(tokens), np.float32)
    length = len(row.choices[found.best[place]])
    if around is not None:
        numbers |= {name: np.asarray(getattr(around, name))[place].item() for name in numbers}
        commit_step, log_prob = (np.asarray(each)[place, :end] for each in (around.commit_step, around.log_prob))
        length += int(around.lengths[place])
    for name in ("nfe", "work", "near_ties", "not_finite"):
        numbers[name] += np.sum(getattr(found, name)[place]).item()
    return Answer(request, tokens, commit_step, log_prob, length, seconds=seconds, **numbers)
