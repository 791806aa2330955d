"""Requests that are answered by particles: several weighed draws each, of which the row is one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from jaxdiff.checkpoint import Checkpoint
from jaxdiff.cli.options import Decoding
from jaxdiff.constraints import Named
from jaxdiff.decode import Particles
from jaxdiff.decode.batches import pad_to_bucket, request_keys
from jaxdiff.decode.particles import prepare_particles
from jaxdiff.parallel.mesh import parse_mesh
from jaxdiff.serve import Answer, Meter, Request
from jaxdiff.types import InputError


def check(constraint: str | None, n: int | None) -> None:
    """Raises InputError for `--particles` without anything that weighs them, and as `Named.parse`."""
    if n is not None and (constraint is None or Named.parse(constraint).estimator is None):
        raise InputError(
            "--particles are weighed by how a constraint draws; give --constraint awrs+regex:PATTERN, not_empty ..."
        )


def check_request(request: Request, n: int | None) -> None:
    """Raises the InputError that this request is refused with."""
    if n is not None and request.is_canvas:
        raise InputError("canvas_ids: found a canvas with --particles, which answer prompts; leave one of the two out")


def answers(
    checkpoint: Checkpoint, rows: Sequence[Request], decoding: Decoding, n: int, *, seed: int, slots: int, meter: Meter
) -> Iterator[tuple[Answer, dict[str, Any]]]:
    """The answer of each request that was checked, a particle drawn by weight, as many requests together as have their
    particles in the `slots`; and what its row holds beside: all of them.
    """
    if not rows:
        return
    model, mesh = checkpoint.model, parse_mesh(decoding.mesh)
    decoder = decoding.decoder(model, decoding.gen_length, tokenizer=checkpoint.tokenizer)
    room = model.config.max_sequence_length - decoding.gen_length
    prompts, origin = pad_to_bucket([row.ids for row in rows], model.config.eos_token_id, room)
    devices = 1 if mesh is None else mesh.shape["data"]
    size = -(-max(min(slots // n, len(rows)), 1) // devices) * devices
    for first in range(0, len(rows), size):
        some, before = np.resize(np.arange(first, min(first + size, len(rows))), size), meter.seconds
        call = prepare_particles(
            *(model, checkpoint.params, prompts[some], decoder),
            n=n,
            gen_length=decoding.gen_length,
            origin=origin[some],
            key=request_keys(seed, np.asarray([rows[i].number for i in some])),
            mesh=mesh,
        )
        found = call.run(call=meter.call)
        for place in range(min(size, len(rows) - first)):
            yield _answer(checkpoint, rows[first + place], found, place, meter.seconds - before)


def _answer(
    checkpoint: Checkpoint, request: Request, found: Particles, place: int, seconds: float
) -> tuple[Answer, dict[str, Any]]:
    """The particle that was drawn; forwards, work and checks are those of all."""
    n = found.weights.shape[1]
    result, row, own = found.result, place * n + int(found.drawn[place]), slice(place * n, place * n + n)
    generated = result.commit_step.shape[1]
    totals = {name: np.sum(getattr(result, name)[own]).item() for name in ("nfe", "cheap", "work", "near_ties")}
    answer = Answer(
        request=request,
        tokens=np.asarray(result.tokens)[row, -generated:],
        commit_step=np.asarray(result.commit_step)[row],
        log_prob=np.asarray(result.log_prob)[row],
        length=int(result.lengths[row]),
        reason=int(result.reason[row]),
        not_finite=int(np.sum(result.not_finite[own])),
        seconds=seconds,
        log_weight=float(result.log_weight[row]),
        checks=int(np.sum(result.checks[own])),
        **totals,
    )
    told = [
        {
            "text": None if checkpoint.tokenizer is None else checkpoint.tokenizer.decode(found.tokens(place, each)),
            "token_ids": found.tokens(place, each).tolist(),
            "weight": float(found.weights[place, each]),
        }
        for each in range(n)
    ]
    more = {
        "particles": told,
        "drawn": int(found.drawn[place]),
        "best": int(found.best[place]),
        "ess": float(found.ess[place]),
        "log_normalizer": float(found.log_normalizer[place]),
        "resampled": int(found.resampled[place]),
    }
    return answer, more
