"""What the commands say on stderr, so that stdout holds results alone."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table

from jaxdiff.files import json_line

NARROW = 40  # columns that a table gets at least


def stderr() -> Console:
    """Made anew for each use: tests and pipes change `sys.stderr`."""
    return Console(stderr=True)


def note(text: str, style: str = "dim") -> None:
    """One line, as it is: no markup, no wrapping. Where stderr takes no more (a full disk) it is not told."""
    try:
        stderr().print(text, style=style, markup=False, highlight=False, emoji=False, soft_wrap=True)
    except BrokenPipeError:
        raise
    except OSError:
        drop(sys.stderr)


def drop(stream: TextIO) -> None:
    """What is left in a stream's buffer, and all that is still to come, goes nowhere: it takes no more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def tell(numbers: dict[str, Any], shown: str | Table, *, as_json: bool) -> None:
    """A command's result: its numbers as JSON, or a table, on stdout; a line beside what it wrote on stderr."""
    if as_json:
        print(json_line(numbers))
    elif isinstance(shown, str):
        note(shown)
    else:
        console = Console()
        if console.width < NARROW:  # COLUMNS=0 would show nothing at all
            console = Console(width=NARROW)
        console.print(shown)


@contextlib.contextmanager
def progress(
    name: str,
    total: int,
    says: Callable[[Any, Any], str] = lambda tokens, seconds: f"{tokens / seconds:,.0f} tokens/s",
) -> Iterator[Callable[..., None]]:
    """A bar that is told what is done, and maybe what was made in how many seconds (1 if not given), of which it `says`
    something.
    """
    with _bar(name, total, MofNCompleteColumn(), BarColumn(), TextColumn("{task.fields[rate]}")) as bar:

        def update(done: int, made: Any = None, seconds: float | int = 1) -> None:
            bar(completed=done, rate="" if made is None else says(made, seconds))

        yield update


@contextlib.contextmanager
def copying(name: str) -> Iterator[Callable[[int, int], None]]:
    """A bar that is told the bytes that are done, and all."""
    with _bar(name, None, BarColumn(), DownloadColumn(), TransferSpeedColumn()) as bar:
        yield lambda done, total: bar(completed=done, total=total)


@contextlib.contextmanager
def _bar(name: str, total: int | None, *columns: ProgressColumn) -> Iterator[Callable[..., None]]:
    """The `update` of a bar with these columns between its name and the time left; none if stderr is no terminal."""
    console, shown = stderr(), (TextColumn(name), *columns, TimeRemainingColumn())
    with Progress(*shown, console=console, disable=not console.is_terminal) as bar:
        yield functools.partial(bar.update, bar.add_task(name, total=total, rate=""))
