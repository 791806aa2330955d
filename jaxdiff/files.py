"""What every folder that is read or written here needs: JSON with one clear error, folders replaced as a whole."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from jaxdiff.types import InputError

_scratch: set[Path] = set()  # what an interrupted program has to clear away


def first_line(error: BaseException) -> str:
    """Why, in a few words that fit a one-line message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


@contextlib.contextmanager
def refusing(what: str, mend: str = "", kinds: tuple[type[Exception], ...] = (Exception,)) -> Iterator[None]:
    """Raises errors of these kinds as an InputError of one line: `what`, why, `mend`. InputErrors pass unchanged."""
    try:
        yield
    except InputError:
        raise
    except kinds as error:
        raise InputError(f"{what} ({first_line(error)}){mend and '; '}{mend}") from error


def read_object(path: Path, *, optional: bool = False) -> dict[str, Any]:
    """A JSON object; an empty one for a file that is `optional` and missing.

    Raises InputError where the file is missing, damaged or something else.
    """
    if optional and not path.is_file():
        return {}
    with refusing(f"{path}: damaged", "restore the file", (OSError, ValueError, RecursionError)):
        found = json.loads(path.read_text(encoding="utf-8-sig"))
        if not isinstance(found, dict):
            raise ValueError(f"found {type(found).__name__}, expected an object")
    return found


def write_object(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def copy_present(names: Iterable[str], source: Path, target: Path) -> None:
    """Copy the files of these names that the folder `source` holds to the folder `target`."""
    for name in names:
        if (source / name).is_file():
            shutil.copy(source / name, target / name)


@contextlib.contextmanager
def replaced_file(path: Path) -> Iterator[Path]:
    """A file to write, which then takes the place of `path`: as a whole, or not at all where writing fails."""
    scratch = path.with_name(f".{os.getpid()}-{path.name}")
    _scratch.add(scratch)
    try:
        yield scratch
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)
        _scratch.discard(scratch)


@contextlib.contextmanager
def replaced(folder: Path) -> Iterator[Path]:
    """A folder to write into, which then takes the place of `folder`: as a whole, or not at all where writing fails."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    _scratch.add(scratch)
    try:
        new, old = scratch / "new", scratch / "old"
        new.mkdir()
        yield new
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        _scratch.discard(scratch)


def clear_scratch() -> None:
    """Remove what `replaced` and `replaced_file` have not finished, in a program that ends at once, maybe writing."""
    for path in list(_scratch):
        for _ in range(10):
            shutil.rmtree(path, ignore_errors=True)
            if path.is_file():
                path.unlink(missing_ok=True)
            if not path.exists():
                break
