"""Requests to a causal model with a draft: prompts of about one length together, a batch of slots at a time.

A batch is left when its longest answer is there. Rows that are done wait: what a row costs is counted, not how long.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import jax
import numpy as np
from jaxtyping import Array, Key

from jaxdiff.decode import arrays, checks
from jaxdiff.decode.batches import batches, pad_to_bucket
from jaxdiff.decode.causal import check_filled
from jaxdiff.decode.decoder import Sampling
from jaxdiff.decode.state import row_keys
from jaxdiff.drafts import Draft
from jaxdiff.drafts.api import check_draft, check_target, prepare_speculate
from jaxdiff.protocols import Model
from jaxdiff.serve.queue import Answer, Meter, Request, answer_of, checked_ids
from jaxdiff.types import InputError, Params


def check_drafted(model: Model, request: Request, draft: Draft, gen_length: int) -> None:
    """Raises the InputError that `speculate` would raise for this request, and for what no draft goes with."""
    check_target(model)
    if request.is_canvas:
        check_filled(model)
    if request.gaps is not None:
        raise InputError("insert: found a text with holes with a draft, expected a prompt; take an insertion model")
    if request.stop_strings:
        raise InputError(
            f"stop_strings: found {len(request.stop_strings)} with a draft, expected none: a row ends at end-of-text; "
            "leave them, or the draft, out"
        )
    ids = checked_ids(request)
    checks.check_lengths(model, ids.shape[1], gen_length, 1)
    check_draft(draft, model, ids.shape[1] + gen_length)
    arrays.check_ids(model, ids, np.zeros(1, np.int32), masks_allowed=False, alone=True)


def draft_stream(
    model: Model,
    params: Params,
    requests: Sequence[Request],
    draft: Draft,
    sampling: Sampling,
    *,
    slots: int,
    gen_length: int,
    key: Key[Array, ""],
    meter: Meter,
) -> Iterator[Answer]:
    """Answers requests that were checked, the shorter prompts first: what `speculate` gives for each alone, from an
    empty table.
    """
    room, fill = model.config.max_sequence_length - gen_length, model.config.eos_token_id
    left = sorted(requests, key=lambda request: len(request.ids))
    for numbers in batches(len(left), slots):
        some = [left[number] for number in numbers]
        prompts, origin = pad_to_bucket([request.ids for request in some], fill, room)
        call = prepare_speculate(
            *(model, params, prompts, draft),
            sampling=sampling,
            gen_length=gen_length,
            origin=origin,
            key=row_keys(key, np.asarray([request.number for request in some], np.int32)),
        )
        before = meter.seconds
        found = jax.device_get(call.run(meter.call))
        meter.count(int(found.nfe.max()), len(some), int(found.nfe[: len(set(numbers))].sum()))
        for place, number in enumerate(dict.fromkeys(numbers.tolist())):
            own, every, seconds = slice(prompts.shape[1], None), slice(None), meter.seconds - before
            yield answer_of(left[number], found, place, own, every, seconds, cheap=int(found.cheap[place]))
