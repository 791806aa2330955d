"""Part files: what has been made of one output so far, row by row, and how it becomes that output.

    OUT.parts/part-00000.jsonl      {"run": {what the rows depend on}}
                                    {"number": 17, "row": {the line of OUT}, ...}
                                    ...

A process appends to its own file alone, a whole line at a time. No mark says that a part is whole: the parts are, when
they hold every row, whoever wrote it. A line without its end was cut by a kill; it counts as not written. A job that is
started again makes what no part holds.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxdiff.files import (
    Lines,
    json_line,
    parse_json,
    read_object,
    replaced_file,
    whole_lines,
    write_lines,
    write_object,
    writing,
)
from jaxdiff.types import InputError

FIELDS = 3  # of a decoded row: raised when they change, so that rows of an earlier version are not gone on with
LARGE = 64 << 20  # bytes of a file or an array above which samples stand for the whole
SAMPLES, SAMPLE = 256, 64 << 10  # of a large file: how many, of how many bytes each
READ = (".json", ".jinja", ".txt", ".model", ".safetensors", ".bin")  # what a model is read from, and these folders
READ_FOLDERS = ("params", "filters", "judges", "drafters", "additional_chat_templates")

SETTING = "setting.json"
Line = dict[str, Any]


def digest(*pieces: bytes) -> str:
    """16 hex digits of SHA-256."""
    whole = hashlib.sha256()
    for piece in pieces:
        whole.update(len(piece).to_bytes(8, "little") + piece)
    return whole.hexdigest()[:16]


def digest_of_folder(folder: Path) -> str:
    """Of a model's folder: the names and the contents of the files that are a model, its tokenizer, filters, drafters.

    A file of more than 64 MiB counts by its size and by 16 MiB of it: 256 samples spread evenly from its first byte to
    its last. Other weights differ everywhere; a change of a few bytes in so large a file may go unseen.
    """
    wanted = [path for path in folder.glob("*") if path.suffix in READ]
    wanted += [path for name in READ_FOLDERS for path in (folder / name).rglob("*")]
    pieces = []
    for path in sorted(path for path in wanted if path.is_file()):
        pieces += [path.relative_to(folder).as_posix().encode(), _digest_of_file(path)]
    return digest(*pieces)


def _digest_of_file(path: Path) -> bytes:
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= LARGE:
            return hashlib.file_digest(file, "sha256").digest()
        whole = hashlib.sha256(size.to_bytes(8, "little"))
        for at in np.linspace(0, size - SAMPLE, SAMPLES, dtype=np.int64).tolist():
            file.seek(at)
            whole.update(file.read(SAMPLE))
    return whole.digest()


def digest_of_tree(tree: Any) -> str:
    """Of a pytree: its structure with the static fields, and each leaf's dtype, shape and numbers.

    A leaf of more than 64 MiB counts by evenly spread entries of its last axis, some 64 MiB of them.
    """
    leaves, structure = jax.tree.flatten(tree)
    pieces = [str(structure).encode()]
    for leaf in leaves:
        leaf = leaf if hasattr(leaf, "nbytes") else np.asarray(leaf)
        pieces.append(f"{leaf.dtype} {leaf.shape}".encode())
        seen = leaf[..., :: -(-leaf.nbytes // LARGE)] if leaf.nbytes > LARGE else leaf
        pieces.append(np.asarray(seen).tobytes())
    return digest(*pieces)


def run_of(**values: Any) -> dict[str, Any]:
    """What the rows of a run depend on, by name, as it comes back from JSON."""
    return json.loads(json_line(values))


def differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """The names of what differs between two runs; of a group of settings, also which of them."""
    found = []
    for name, value in ours.items():
        other = theirs.get(name, ...)
        if other != value:
            which: list[str] = []
            if isinstance(other, dict) and isinstance(value, dict):
                which = [key for key in sorted({**other, **value}) if other.get(key, ...) != value.get(key, ...)]
            found.append(f"{name} ({', '.join(which)})" if which else name)
    return ", ".join(found) or ", ".join(sorted(set(theirs) - set(ours)))


def claim(folder: Path, what: str, setting: Mapping[str, Any]) -> None:
    """The folder is new, or holds the beginning of this very run (`setting.json`, what its files depend on).

    Raises InputError with what differs where it holds another's; `what` it holds, for the message.
    """
    saved = folder / SETTING
    if saved.is_file():
        if differs := differences(read_object(saved), setting):
            raise InputError(f"{folder}: holds {what} of other {differs}; name a new folder, or delete it")
        return
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with replaced_file(saved) as new:
        write_object(new, dict(setting))


def folder_of(out: Path) -> Path:
    return out.with_name(f"{out.name}.parts")


def part_of(out: Path, process: int) -> Path:
    return folder_of(out) / f"part-{process:05d}.jsonl"


def written(out: Path, run: Mapping[str, Any]) -> dict[int, Line]:
    """The lines that all parts of `out` hold, by the number of their row.

    Raises InputError for a part with rows of another run, or one that is damaged.
    """
    lines: dict[int, Line] = {}
    for path in sorted(folder_of(out).glob("part-*.jsonl")):
        header, *rest = whole_lines(path) or [b""]
        if not rest:
            continue
        try:
            theirs = dict(parse_json(header.decode())["run"])
            found = [parse_json(line.decode()) for line in rest]
            numbered = {int(line["number"]): {**line, "row": line["row"]} for line in found}
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}: damaged ({error}); delete it, and its rows are made again") from error
        if theirs != run:
            raise InputError(
                f"{path}: is of a run with another {differences(theirs, run)}; delete {path.parent}, or name another "
                "--out"
            )
        lines |= numbered
    return lines


class Part(Lines):
    """One process's part file, open at its end. A line has a row's `number`, the `row`, and what else is to be known of
    it when the job goes on. A part without rows becomes this run's, whosever it was.

    Raises InputError as `Lines` does.
    """

    def __init__(self, out: Path, process: int, run: Mapping[str, Any]) -> None:
        path = part_of(out, process)
        with writing(path):
            path.parent.mkdir(exist_ok=True)
        super().__init__(path)
        if len(whole_lines(path)) < 2:
            self.keep(0)
            try:
                self.write({"run": dict(run)})
            except InputError:  # no room for one line: leave nothing behind
                self._file.close()
                remove(out)
                raise


def merged(out: Path, run: Mapping[str, Any], numbers: Sequence[int]) -> list[Line] | None:
    """The lines of the parts in the order of `numbers`, if they hold them all."""
    lines = written(out, run)
    return [lines[number] for number in numbers] if all(number in lines for number in numbers) else None


def finish(out: Path, lines: Sequence[Line]) -> None:
    """Write the output, as a whole or not at all. Raises InputError where it cannot be written."""
    write_lines(out, [line["row"] for line in lines], Part.MEND)


def remove(out: Path) -> None:
    """Delete the parts of an output that is whole, and their folder if nothing else lies there."""
    for path in folder_of(out).glob("part-*.jsonl"):
        path.unlink()
    with contextlib.suppress(OSError):
        folder_of(out).rmdir()
