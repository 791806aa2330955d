"""`jaxdiff generate --distributed`: several processes share the rows of one file.

    meet -> agree on input, model, settings, versions -> part: each decodes its share into its own part file
         -> whoever ends last merges the parts, in the order of the input

The hosts share OUT's folder. A row belongs to a process by its place in the input, so that nothing is handed out and
nobody waits; a job that is started again, with as many processes or more or fewer, decodes what no part holds yet.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

import jaxdiff
from jaxdiff.checkpoint import Checkpoint, load
from jaxdiff.cli import parts, requests
from jaxdiff.cli.hosts import Hosts, agree, together
from jaxdiff.cli.options import Decoding
from jaxdiff.cli.show import tell
from jaxdiff.cli.tally import Tally, decoded
from jaxdiff.serve import Refusal
from jaxdiff.types import InputError


def share(
    hosts: Hosts,
    in_file: Path,
    out: Path,
    make_decoding: Callable[[], Decoding],
    job: requests.Job,
    as_json: bool,
) -> int:
    """Returns 1 if a row of this process's share was refused, else 0.

    `make_decoding`: a policy's numbers are arrays, and none may be made before the processes have met.
    """
    process, processes = hosts.meet()

    def prepare() -> tuple[Decoding, Checkpoint, list[requests.Row], dict[str, str]]:
        decoding = make_decoding()
        requests.check_writable(out)
        checkpoint = load(decoding.model, dtype=decoding.dtype, weights=decoding.weights, ignore=decoding.ignore_config)
        rows, run = requests.read(in_file, checkpoint, decoding), fingerprints(in_file, checkpoint, decoding, job)
        if parts.merged(out, run, [row.number for row in rows]) is None and out.exists():
            raise InputError(f"out: {out} is there already, and no whole parts beside it; move it or name another")
        return decoding, checkpoint, rows, run

    decoding, checkpoint, rows, run = together(prepare)
    agree(run)
    part = together(lambda: parts.Part(out, process, run))
    together(lambda: _see_all(out, processes))
    jax.distributed.shutdown()  # from here on no process depends on another, nor dies with it

    numbers = [row.number for row in rows]
    before, tally = parts.written(out, run), Tally()
    mine = requests.in_order(rows)[process::processes]
    left = [row for row in mine if row.number not in before]
    with part:
        for number, row in decoded(checkpoint, left, decoding, in_file, job, tally):
            part.write(number, row)
    whole = parts.merged(out, run, numbers)
    if whole is not None and not out.exists():
        requests.write(out, whole)
    counts = {"rows": tally.rows, "refused": tally.refused, "process": process, "whole": whole is not None}
    end = f"{out} is whole" if whole is not None else f"{out} is written by the process that ends last"
    line = (
        f"process {process} of {processes}: {tally.rows} rows written to {part.path}, {tally.refused} refused, "
        f"{sum(number in before for number in numbers)} were there before · {tally.line()} · {end}"
    )
    tell(counts | tally.numbers() | {"seed": job.seed}, line, as_json=as_json)
    return 1 if any(isinstance(row, Refusal) for row in mine) else 0


def fingerprints(in_file: Path, checkpoint: Checkpoint, decoding: Decoding, job: requests.Job) -> dict[str, str]:
    """What all processes must have in common, and a restarted job with the parts that it finds.

    Not the slots, nor where the model's folder lies: no row depends on them.
    """
    settings: dict[str, Any] = dataclasses.asdict(decoding) | dataclasses.asdict(job)
    settings["config"] = dataclasses.asdict(checkpoint.model.config)
    del settings["model"], settings["slots"]
    names = ("jax", "jaxlib", "flax") if decoding.weights is None else ("jax", "jaxlib", "flax", "qwix")
    versions = {name: version(name) for name in names} | {
        "jaxdiff": jaxdiff.__version__,
        "device": jax.local_devices()[0].device_kind,
    }
    return {
        "input": parts.digest(in_file.read_bytes()),
        "model": parts.digest_of_folder(checkpoint.path),
        "settings": parts.digest(json.dumps(settings, sort_keys=True).encode()),
        "versions": parts.digest(json.dumps(versions, sort_keys=True).encode()),
    }


def _see_all(out: Path, processes: int) -> None:
    """Every process has made its part by now; a host that does not see them all writes to a disk of its own."""
    for process in range(processes):
        if not parts.part_of(out, process).is_file():
            raise InputError(
                f"out: {parts.folder_of(out)} does not show the part of process {process}; name a file in a folder "
                "that all hosts share"
            )
