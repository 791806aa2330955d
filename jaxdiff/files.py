"""What every file that is read or written here needs: JSON as its standard has it, whole lines, one clear error.

All text is UTF-8, whatever the locale.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import glob
import json
import logging
import math
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from jaxdiff.types import InputError

try:
    import fcntl
except ImportError:  # not on Windows: there nothing keeps two programs from one file
    fcntl = None  # type: ignore[assignment]

FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS)  # what no file of a place can be written with
FRESH = 2.0  # seconds in which a scratch that has no lock may be about to get it
QUIET = 0.4  # seconds after which threads that wrote to a folder when one of them failed are taken to have ended
FREE = "free space there, or name another place"

_scratch: set[Path] = set()  # what an interrupted program has to clear away


def first_line(error: BaseException) -> str:
    """Why, in a few words that fit a one-line message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def without_user(text: str) -> str:
    """A text without the user and password of the addresses in it (`https://user:password@host/`)."""
    return re.sub(r"(:/+)[^/\s]*@", r"\1", text)


@contextlib.contextmanager
def refusing(what: str, mend: str = "", kinds: tuple[type[Exception], ...] = (Exception,)) -> Iterator[None]:
    """Raises errors of these kinds as an InputError of one line: `what`, why, `mend`. InputErrors pass unchanged."""
    try:
        yield
    except InputError:
        raise
    except kinds as error:
        raise InputError(f"{what} ({first_line(error)}){mend and '; '}{mend}") from error


@contextlib.contextmanager
def writing(path: Path, mend: str = FREE, *, scratch: Path | None = None) -> Iterator[None]:
    """Raises what `path` cannot be written with as an InputError of one line: the file, why, `mend`.

    A full disk is known by its error number or by the system's words for it, since orbax, numpy, tokenizers and
    safetensors raise errors of their own. Of other errors those of the system count that name no other file than `path`
    or the `scratch` that is to take its place; all else passes unchanged, InputErrors too.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if (why := _why_full(error)) is None and _is_about(error, {path, scratch or path}):
            why = error.strerror or first_line(error)  # type: ignore[attr-defined]
        if why is None:
            raise
        raise InputError(f"{path}: cannot be written ({why}); {mend}") from error


@contextlib.contextmanager
def saving(path: Path, mend: str = FREE) -> Iterator[None]:
    """`writing` with orbax."""
    with orbax_silenced(), writing(path, mend):
        yield


@contextlib.contextmanager
def orbax_silenced() -> Iterator[None]:
    """Orbax tells of each error that it raises in other ways as well, and of some of it later: not here.

    It logs them with tracebacks, and its other readers and writers report a closed event loop. After an error this
    stays silenced.
    """
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    levels, hook = [logger.level for logger in loggers], sys.unraisablehook

    def without_others(report: Any) -> None:
        if str(report.exc_value) != "Event loop is closed":
            hook(report)

    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    sys.unraisablehook = without_others
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)
    sys.unraisablehook = hook


def _why_full(error: BaseException) -> str | None:
    """The system's words where the error, or one that it came from, is that of a disk that takes no more."""
    seen: BaseException | None = error
    while seen is not None:
        for code in FULL:
            if getattr(seen, "errno", None) == code or os.strerror(code) in str(seen):
                return os.strerror(code) + (": a limit, see ulimit -f" if code == errno.EFBIG else "")
        seen = seen.__cause__ or seen.__context__
    return None


def _is_about(error: Exception, places: set[Path]) -> bool:
    if not isinstance(error, OSError) or error.errno is None:
        return False
    named = error.filename
    return named is None or any(Path(os.fsdecode(named)).is_relative_to(place) for place in places)


def parse_json(text: str) -> Any:
    """A value of JSON.

    Raises ValueError for what is none: NaN and infinities too, also as a number beyond float64; a key that stands twice
    in one object; and whole numbers of more digits than Python reads.
    """
    return json.loads(text, parse_constant=_refuse_constant, parse_float=_finite, object_pairs_hook=_once)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"found {name}, which JSON does not have")


def _finite(text: str) -> float:
    if math.isinf(number := float(text)):
        raise ValueError(f"found {text}, expected a number that float64 holds")
    return number


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"found key {twice!r} twice in one object, expected it once")
    return value


def json_line(value: Any) -> str:
    """A value as one line of JSON, without the line's end; null for floats that are not finite: JSON has none."""
    try:
        return json.dumps(value, allow_nan=False)
    except ValueError:
        return json.dumps(_with_nulls(value), allow_nan=False)


def _with_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _with_nulls(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_with_nulls(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_object(path: Path, *, optional: bool = False) -> dict[str, Any]:
    """A JSON object; an empty one for a file that is `optional` and missing.

    Raises InputError where the file is missing, damaged or something else.
    """
    if optional and not path.is_file():
        return {}
    with refusing(f"{path}: damaged", "restore the file", (OSError, ValueError, RecursionError)):
        found = parse_json(path.read_text(encoding="utf-8-sig"))
        if not isinstance(found, dict):
            raise ValueError(f"found {type(found).__name__}, expected an object")
    return found


def write_object(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def whole_lines(path: Path) -> list[bytes]:
    """The lines of a file that have their end, without it: the last one has none where a kill cut it."""
    return path.read_bytes().split(b"\n")[:-1]


class Lines:
    """A file of JSON lines, open at its end. Each value is appended as it is given: one write of one whole line.

    A line that a kill cut short is taken off when the file is opened again. No two programs write one file.

    Raises InputError, here and in `write` and `close`, where the file cannot be written: its whole lines stay, and
    nothing of the line that did not fit.
    """

    MEND = "free space there and give the same command again: what is written stays"

    def __init__(self, path: Path) -> None:
        self.path = path
        with writing(path, self.MEND):
            self._file = path.open("ab", buffering=0)
            self._lock()
            self._size = path.read_bytes().rfind(b"\n") + 1
            self._file.truncate(self._size)

    def _lock(self) -> None:
        """Until the file is closed, or the program ends in whatever way."""
        if fcntl is None:
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._file.close()
            raise InputError(f"{self.path}: is being written by another program; let it end, or stop it") from error
        except OSError:
            pass  # a file system without locks

    def keep(self, count: int) -> None:
        """Take all lines off but the first ones."""
        self._size = sum(len(line) + 1 for line in whole_lines(self.path)[:count])
        with writing(self.path, self.MEND):
            self._file.truncate(self._size)

    def write(self, value: Any) -> None:
        line = json_line(value).encode() + b"\n"
        with writing(self.path, self.MEND):
            try:
                left = memoryview(line)
                while left:
                    left = left[self._file.write(left) :]
            except OSError:
                with contextlib.suppress(OSError):
                    self._file.truncate(self._size)
                raise
        self._size += len(line)

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None:
        with writing(self.path, self.MEND), self._file:
            os.fsync(self._file.fileno())


def write_lines(path: Path, values: Iterable[Any], mend: str = FREE) -> None:
    """A file of JSON lines, as a whole or not at all."""
    with replaced_file(path, mend) as new, new.open("wb") as file:
        file.writelines(json_line(value).encode() + b"\n" for value in values)


def check_writable(path: Path, source: Path | None = None, what: str = "out") -> None:
    """Raises InputError, which begins with `what`, for a path that `write_lines` could not, or must not, put a file at:
    the `source`'s is one.
    """
    place = os.path.realpath(path.parent)
    if path.exists() and (not path.is_file() or place == "/dev" or place.startswith("/proc/")):
        raise InputError(f"{what}: {path} is not a file; name another")  # a device, which renaming would replace
    for home in (path.parent, Path(os.path.realpath(path)).parent):  # the second: of what a link leads to
        if not home.is_dir() or not os.access(home, os.W_OK):
            raise InputError(f"{what}: {home} is no folder that can be written to; make it or name another")
    if source is not None and path.exists() and source.exists() and path.samefile(source):
        raise InputError(f"{what}: {path} is the file to read, which would be lost; name another")


@contextlib.contextmanager
def without_patterns(folder: Path) -> Iterator[Path]:
    """An absolute path of a folder that orbax can use: its own, or a link to it for as long as the context.

    Brackets would be a pattern of names to orbax, which then leaves out arrays that it writes, without a word; and its
    reader takes a backslash for a slash.
    """
    if not set("[]*?\\") & set(str(folder.absolute())):
        yield folder.absolute()
        return
    with tempfile.TemporaryDirectory() as home:
        link = Path(home) / "folder"
        link.symlink_to(folder.absolute())
        yield link


def copy_present(names: Iterable[str], source: Path, target: Path) -> None:
    """Copy the text files of these names that the folder `source` holds to the folder `target`, without a byte order
    mark, which other programs do not take.
    """
    for name in names:
        if (source / name).is_file():
            (target / name).parent.mkdir(exist_ok=True)
            (target / name).write_bytes((source / name).read_bytes().removeprefix(codecs.BOM_UTF8))


@contextlib.contextmanager
def replaced_file(path: Path, mend: str = FREE) -> Iterator[Path]:
    """A file to write, which then takes the place of `path`: as a whole, or not at all where writing fails.

    Raises InputError where it cannot be written.
    """
    target = Path(os.path.realpath(path)) if path.is_symlink() else path  # a link stays one
    scratch = target.with_name(f"{_scratch_name(target)}{os.getpid()}")
    with writing(path, mend, scratch=scratch), _held(scratch, target, scratch.touch):
        yield scratch
        scratch.replace(target)


@contextlib.contextmanager
def replaced(folder: Path) -> Iterator[Path]:
    """A folder to write into, which then takes the place of `folder`: as a whole, or not at all where writing fails.

    Raises InputError where it cannot be written.
    """
    with _scratch_folder(folder, folder.parent) as scratch:
        new, old = scratch / "new", scratch / "old"
        new.mkdir()
        yield new
        if folder.exists():
            folder.rename(old)
        new.rename(folder)


@contextlib.contextmanager
def added(folder: Path) -> Iterator[Path]:
    """A folder to write files into, which then join those of `folder`, or replace them: none where writing fails.

    Raises InputError where they cannot be written.
    """
    with _scratch_folder(folder, folder) as scratch:
        yield scratch
        for path in scratch.iterdir():
            path.replace(folder / path.name)


@contextlib.contextmanager
def _scratch_folder(folder: Path, home: Path) -> Iterator[Path]:
    """A folder in `home`, for what is to become (a part of) `folder`; it is gone in the end."""
    with writing(folder, scratch=home):
        home.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=_scratch_name(folder), dir=home))
    with writing(folder, scratch=scratch), _held(scratch, folder):
        yield scratch


def _scratch_name(path: Path) -> str:
    """How the names of what is to take the place of `path` begin."""
    return f".{path.name}-jaxdiff-"


@contextlib.contextmanager
def _held(scratch: Path, path: Path, make: Callable[[], None] = lambda: None) -> Iterator[None]:
    """`make` a scratch for `path` and remove it in the end; what a killed program has left of others is removed now.

    A lock tells the scratch of a program that runs from one that was killed.
    """
    for other in set(scratch.parent.glob(glob.escape(_scratch_name(path)) + "*")) - {scratch}:
        with contextlib.suppress(OSError):
            if time.time() - other.stat().st_mtime > FRESH and (lock := _locked(other)) is not None:
                if (other / "old").exists() and not path.exists():  # killed between the two renamings of `replaced`
                    (other / "old").rename(path)
                _remove(other)
                os.close(lock)
    _scratch.add(scratch)
    lock = None
    try:
        make()
        lock = _locked(scratch)
        yield
    except BaseException:
        if scratch.is_dir():
            _remove_for_good(scratch)
        raise
    finally:
        _remove(scratch)
        if lock is not None:
            os.close(lock)
        _scratch.discard(scratch)


def _locked(path: Path) -> int | None:
    """A descriptor that holds the lock of a file or a folder; None where another program holds it or none can."""
    if fcntl is None:
        return None
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _remove(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
    if path.is_file():
        path.unlink(missing_ok=True)


def _remove_for_good(path: Path) -> None:
    """Remove a folder that threads may still write to: those of orbax go on after the error of one of them, and make
    the folder again. They are taken to have ended once it has stayed away for QUIET seconds.
    """
    gone, end = time.monotonic(), time.monotonic() + 20 * QUIET
    while time.monotonic() < min(gone + QUIET, end):
        if path.exists():
            _remove(path)
            gone = time.monotonic()
        time.sleep(QUIET / 20)


def clear_scratch() -> None:
    """Remove what `replaced` and `replaced_file` have not finished, in a program that ends at once, maybe writing."""
    for path in list(_scratch):
        for _ in range(10):
            _remove(path)
            if not path.exists():
                break
