"""Requests to an insertion model: texts of about one length together, a batch of slots at a time.

A batch is left when its longest answer is there. Rows that are done wait: what a row costs is counted, not how long.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

import jax
import numpy as np
from jaxtyping import Array, Key

from jaxdiff.decode import arrays
from jaxdiff.decode.batches import batches, pad_to_bucket
from jaxdiff.decode.decoder import Sampling
from jaxdiff.decode.state import row_keys
from jaxdiff.insertion.api import check_lengths, check_model, prepare_insert
from jaxdiff.insertion.ways import Way
from jaxdiff.protocols import Model
from jaxdiff.serve.queue import Answer, Meter, Request, answer_of, checked_ids
from jaxdiff.types import InputError, Params


def check_insertion(model: Model, request: Request, gen_length: int) -> None:
    """Raises the InputError that `insert` would raise for this request, and for what is of masks."""
    check_model(model)
    if request.is_canvas:
        raise InputError(
            "canvas_ids: found a canvas of masks for an insertion model, expected a text in parts; give insert: "
            "[left, right]"
        )
    if request.stop_strings:
        raise InputError(
            f"stop_strings: found {len(request.stop_strings)} for an insertion model, whose text is not written from "
            "left to right, expected none; leave them out"
        )
    ids = checked_ids(request)
    check_lengths(model, ids.shape[1], gen_length)
    arrays.check_ids(model, ids, np.zeros(1, np.int32), masks_allowed=False, alone=True)
    if request.gaps is not None and not all(0 <= gap < ids.shape[1] for gap in request.gaps or (-1,)):
        raise InputError(f"gaps: found {request.gaps}, expected one or more of 0 to {ids.shape[1] - 1}")


def insert_stream(
    model: Model,
    params: Params,
    requests: Sequence[Request],
    way: Way,
    sampling: Sampling,
    *,
    slots: int,
    gen_length: int,
    key: Key[Array, ""],
    meter: Meter,
) -> Iterator[Answer]:
    """Answers requests that were checked, in an order of its own: what `insert` gives for each alone.

    `tokens` are what was inserted behind a prompt; of a text with gaps, all of it.
    """

    def shape(request: Request) -> tuple[int, int]:
        return (1 if request.gaps is None else len(request.gaps)), len(request.ids)

    room, fill = model.config.max_sequence_length - gen_length, model.config.eos_token_id
    for _, alike in groupby(sorted(requests, key=shape), key=lambda request: shape(request)[0]):
        left = list(alike)
        for numbers in batches(len(left), slots):
            some = [left[number] for number in numbers]
            prompts, origin = pad_to_bucket([request.ids for request in some], fill, room)
            gaps = np.zeros(prompts.shape, bool)
            for row, first, request in zip(gaps, origin, some, strict=True):
                row[[-1] if request.gaps is None else [first + gap for gap in request.gaps]] = True
            call = prepare_insert(
                *(model, params, prompts, way),
                sampling=sampling,
                gen_length=gen_length,
                origin=origin,
                gaps=gaps,
                key=row_keys(key, np.asarray([request.number for request in some], np.int32)),
            )
            before = meter.seconds
            found = jax.device_get(call.run(meter.call))
            meter.count(int(found.nfe.max()), len(some), int(found.nfe[: len(set(numbers))].sum()))
            for place, number in enumerate(dict.fromkeys(numbers.tolist())):
                start = prompts.shape[1] if left[number].gaps is None else int(found.origin[place])
                own = slice(start, int(found.ends[place]))
                yield answer_of(left[number], found, place, own, own, meter.seconds - before)
