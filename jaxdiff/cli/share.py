"""`jaxdiff generate --in`: the rows of one file, by one process or shared between several.

    meet -> agree on input, model, settings, versions -> part: each decodes its share into its own part file
         -> whoever ends last merges the parts, in the order of the input

One process has nobody to meet, and clears its part away when the output is whole. Several share OUT's folder. A row
belongs to a process by its place in the input, so that nothing is handed out and nobody waits; a job that is started
again, with as many processes or more or fewer, decodes what no part holds yet.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import sys
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

import jaxdiff
from jaxdiff import parts
from jaxdiff.checkpoint import Checkpoint, load, model_folder
from jaxdiff.cli import requests
from jaxdiff.cli.hosts import Hosts, agree, together
from jaxdiff.cli.options import Decoding
from jaxdiff.cli.show import note, tell
from jaxdiff.cli.tally import Tally, decode_rows, trusted
from jaxdiff.files import check_writable, json_line
from jaxdiff.hub import origin_of
from jaxdiff.serve import Refusal
from jaxdiff.types import InputError


@dataclasses.dataclass(frozen=True)
class Work:
    """A file that was read and checked, and what its rows depend on."""

    checkpoint: Checkpoint
    decoding: Decoding
    job: requests.Job
    in_file: Path
    out: Path
    rows: list[requests.Row]
    run: dict[str, Any]

    @classmethod
    def of(
        cls, load: Callable[[], Checkpoint], decoding: Decoding, job: requests.Job, in_file: Path, out: Path
    ) -> Work:
        """Of a file that can be read, and a place that can be written to: both are tried before the model is loaded."""
        check_writable(out, in_file)
        data = in_file.read_bytes()  # once: it may be a pipe
        checkpoint = load()
        rows = requests.read(data, checkpoint, decoding, job)
        return cls(checkpoint, decoding, job, in_file, out, rows, fingerprints(data, checkpoint, decoding, job))

    @property
    def numbers(self) -> list[int]:
        return [row.number for row in self.rows]

    def decode(self, part: parts.Part, mine: list[requests.Row], before: dict[int, parts.Line]) -> Tally:
        """Decode into a part those of the rows `mine` that no part holds `before`."""
        left = [row for row in mine if row.number not in before]
        with part:
            return decode_rows(self.checkpoint, left, self.decoding, self.in_file, self.job, part.write)


def decode_file(in_file: Path, out: Path, decoding: Decoding, job: requests.Job, as_json: bool) -> int:
    """All rows in this process. Returns 1 if a row was refused or met scores that are no numbers, else 0."""
    work = Work.of(decoding.load, decoding, job, in_file, out)
    before = parts.written(out, work.run)
    took = work.decode(parts.Part(out, 0, work.run), work.rows, before)
    lines = parts.merged(out, work.run, work.numbers)
    if lines is None:
        raise InputError(f"{parts.folder_of(out)}: lost rows while they were decoded; give the same command again")
    parts.finish(out, lines)
    parts.remove(out)
    tally = Tally(took.meter)
    for line in lines:
        tally.add(line)
    numbers = {"rows": tally.rows, "refused": tally.refused, **tally.numbers(), "seed": job.seed}
    numbers["revision"] = work.checkpoint.revision
    numbers["adapter"] = decoding.pinned_adapter
    there = f", {len(before)} were there before" if before else ""
    said = f"{tally.rows} rows written to {out}, {tally.refused} refused{there} · {tally.line()}"
    tell(numbers, said, as_json=as_json)
    sound = _trusted(work, lines)
    return 1 if tally.refused or not sound else 0


def print_file(in_file: Path, decoding: Decoding, job: requests.Job) -> int:
    """All rows to stdout, in the order of the file: each as soon as it and those before it are done.

    Returns 1 if a row was refused or met scores that are no numbers, else 0.
    """
    data = in_file.read_bytes()
    checkpoint = decoding.load()
    rows = requests.read(data, checkpoint, decoding, job)
    # A progress bar sends what is printed to its own terminal: right where that is stdout's too.
    out = None if sys.stdout.isatty() else sys.stdout
    waiting: dict[int, parts.Line] = {}
    left = collections.deque(row.number for row in rows)
    not_finite: dict[int, int] = {}

    def keep(line: parts.Line) -> None:
        waiting[line["number"]] = line["row"]
        while left and left[0] in waiting:
            number = left.popleft()
            row = waiting.pop(number)
            not_finite[number] = row.get("not_finite", 0)
            print(json_line(row), file=out, flush=True)

    tally = decode_rows(checkpoint, rows, decoding, in_file, job, keep)
    note(f"{tally.rows} rows, {tally.refused} refused · {tally.line()}")
    sound = trusted(decoding.model, f"{in_file} line", not_finite)
    return 1 if tally.refused or not sound else 0


def _trusted(work: Work, lines: Iterable[parts.Line]) -> bool:
    """Whether no row met scores that are no numbers; else their lines of the input are told."""
    counts = {line["number"]: line["row"].get("not_finite", 0) for line in lines}
    return trusted(work.decoding.model, f"{work.in_file} line", counts)


def share_file(
    hosts: Hosts,
    in_file: Path,
    out: Path,
    make_decoding: Callable[[], Decoding],
    job: requests.Job,
    as_json: bool,
) -> int:
    """The share of this process. Returns 1 if one of them was refused or met scores that are no numbers, else 0.

    `make_decoding`: a policy's numbers are arrays, and none may be made before the processes have met.
    """
    process, processes = hosts.meet()

    def prepare() -> Work:
        decoding = make_decoding()
        # on this process's own device, whatever the mesh
        made = functools.partial(load, decoding.pinned, dtype=decoding.dtype, weights=decoding.weights)
        made = functools.partial(made, adapter=decoding.pinned_adapter)
        work = Work.of(functools.partial(made, ignore=decoding.ignore_config), decoding, job, in_file, out)
        if parts.merged(out, work.run, work.numbers) is None and out.exists():
            raise InputError(f"out: {out} is there already, and no whole parts beside it; move it or name another")
        return work

    work = together(prepare)
    agree({name: parts.digest(json_line(value).encode()) for name, value in work.run.items()})
    part = together(lambda: parts.Part(out, process, work.run))
    together(lambda: _see_all(out, processes))
    jax.distributed.shutdown()  # from here on no process depends on another, nor dies with it

    before = parts.written(out, work.run)
    mine = requests.in_order(work.rows)[process::processes]
    tally = work.decode(part, mine, before)
    lines = parts.merged(out, work.run, work.numbers)
    if lines is not None and not out.exists():
        parts.finish(out, lines)
    counts = {"rows": tally.rows, "refused": tally.refused, "process": process, "whole": lines is not None}
    end = f"{out} is whole" if lines is not None else f"{out} is written by the process that ends last"
    line = (
        f"process {process} of {processes}: {tally.rows} rows written to {part.path}, {tally.refused} refused, "
        f"{sum(number in before for number in work.numbers)} were there before · {tally.line()} · {end}"
    )
    numbers = counts | tally.numbers() | {"seed": job.seed}
    numbers |= {"revision": work.checkpoint.revision, "adapter": work.decoding.pinned_adapter}
    tell(numbers, line, as_json=as_json)
    done = parts.written(out, work.run)
    sound = _trusted(work, [done[row.number] for row in mine])
    return 1 if any(isinstance(row, Refusal) for row in mine) or not sound else 0


def fingerprints(data: bytes, checkpoint: Checkpoint, decoding: Decoding, job: requests.Job) -> dict[str, Any]:
    """What all processes must have in common, and a restarted job with the parts that it finds: of the input's bytes,
    the model's folder or its commit, each setting, each version.

    Not the slots, nor where the folders of the model and of its adapter lie: no row depends on them.
    """
    settings: dict[str, Any] = dataclasses.asdict(decoding) | dataclasses.asdict(job)
    config = dataclasses.asdict(checkpoint.model.config)
    settings["config"] = parts.digest(json_line(dict(sorted(config.items()))).encode())
    settings["constraint"] = None if decoding.named is None else decoding.named.text  # a schema's file may be another
    settings["cache"] = decoding.cache_of(checkpoint.model)
    del settings["model"], settings["slots"]
    if checkpoint.adapter is not None:
        settings["adapter"] = _print_of(checkpoint.adapter)
    if decoding.pinned_guide is not None:
        settings["guide"] = _print_of(model_folder(decoding.pinned_guide))
    if decoding.pinned_denoiser is not None:
        settings["denoiser"] = _print_of(model_folder(decoding.pinned_denoiser))
    names = ("jax", "jaxlib", "flax") if decoding.weights is None else ("jax", "jaxlib", "flax", "qwix")
    versions = {name: version(name) for name in names} | {
        "jaxdiff": jaxdiff.__version__,
        "device": jax.local_devices()[0].device_kind,
    }
    return parts.run_of(
        fields=parts.FIELDS,
        input=parts.digest(data),
        model=_print_of(checkpoint.path),
        settings=settings,
        versions=versions,
    )


def _print_of(folder: Path) -> str:
    """What stands for a folder: its commit if the hub's cache keeps it, for there other programs put further files
    into it; else a digest of what it holds.
    """
    origin = origin_of(folder)
    return parts.digest_of_folder(folder) if origin is None else str(origin.revision)


def _see_all(out: Path, processes: int) -> None:
    """Every process has made its part by now; a host that does not see them all writes to a disk of its own."""
    for process in range(processes):
        if not parts.part_of(out, process).is_file():
            raise InputError(
                f"out: {parts.folder_of(out)} does not show the part of process {process}; name a file in a folder "
                "that all hosts share"
            )
