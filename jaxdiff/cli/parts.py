"""Part files: what several processes have decoded of one input, row by row, and how they become one output.

    OUT.parts/part-00000.jsonl      {"run": {fingerprints}}
                                    {"number": 17, "row": {the line of OUT}}
                                    ...

A process appends to its own file alone, a whole line at a time. No mark says that a part is whole: the parts are, when
they hold every row of the input, whoever wrote it. A line without its end was cut by a kill; it counts as not written.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxdiff.types import InputError


def digest(*pieces: bytes) -> str:
    """16 hex digits of SHA-256."""
    whole = hashlib.sha256()
    for piece in pieces:
        whole.update(len(piece).to_bytes(8, "little") + piece)
    return whole.hexdigest()[:16]


def digest_of_folder(folder: Path) -> str:
    """Of the names and the contents of all its files."""
    pieces = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            pieces += [path.relative_to(folder).as_posix().encode(), hashlib.file_digest(file, "sha256").digest()]
    return digest(*pieces)


def folder_of(out: Path) -> Path:
    return out.with_name(f"{out.name}.parts")


def part_of(out: Path, process: int) -> Path:
    return folder_of(out) / f"part-{process:05d}.jsonl"


def written(out: Path, run: Mapping[str, str]) -> dict[int, dict[str, Any]]:
    """The rows that all parts of `out` hold, by number.

    Raises InputError for a part of another run, or one that is damaged.
    """
    rows: dict[int, dict[str, Any]] = {}
    for path in sorted(folder_of(out).glob("part-*.jsonl")):
        header, *lines = path.read_bytes().split(b"\n")[:-1] or [b""]  # what follows the last line's end was cut
        if not header:
            continue
        try:
            theirs = json.loads(header)["run"]
            found = [json.loads(line) for line in lines]
            rows |= {int(line["number"]): line["row"] for line in found}
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}: damaged ({error}); delete it, and its rows are decoded again") from error
        if theirs != run:
            other = ", ".join(name for name in run if theirs.get(name) != run[name])
            raise InputError(f"{path}: is of a run with another {other}; delete {path.parent}, or name another --out")
    return rows


class Part:
    """One process's part file, open at its end."""

    def __init__(self, out: Path, process: int, run: Mapping[str, str]) -> None:
        path = part_of(out, process)
        path.parent.mkdir(exist_ok=True)
        self.path = path
        self._file = path.open("ab")
        whole = path.read_bytes().rfind(b"\n") + 1
        self._file.truncate(whole)
        if not whole:
            self._append({"run": dict(run)})

    def write(self, number: int, row: dict[str, Any]) -> None:
        self._append({"number": number, "row": row})

    def _append(self, value: dict[str, Any]) -> None:
        """One write of one whole line; what is killed later leaves it there."""
        self._file.write(json.dumps(value).encode() + b"\n")
        self._file.flush()

    def __enter__(self) -> Part:
        return self

    def __exit__(self, *_: object) -> None:
        os.fsync(self._file.fileno())
        self._file.close()


def merged(out: Path, run: Mapping[str, str], numbers: Sequence[int]) -> list[dict[str, Any]] | None:
    """The rows of the output, in the order of `numbers`, if the parts hold them all."""
    rows = written(out, run)
    return [rows[number] for number in numbers] if all(number in rows for number in numbers) else None
