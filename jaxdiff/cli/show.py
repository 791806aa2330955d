"""What the commands say on stderr, so that stdout holds results alone."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)


def stderr() -> Console:
    """Made anew for each use: tests and pipes change `sys.stderr`."""
    return Console(stderr=True)


def note(text: str, style: str = "dim") -> None:
    """One line, as it is: no markup, no wrapping."""
    stderr().print(text, style=style, markup=False, highlight=False, emoji=False, soft_wrap=True)


@contextlib.contextmanager
def progress(
    name: str,
    total: int,
    says: Callable[[float, float], str] = lambda tokens, seconds: f"{tokens / seconds:,.0f} tokens/s",
) -> Iterator[Callable[[int, float, float], None]]:
    """A bar that is told what is done, and two numbers that it `says` something of; none if stderr is no terminal."""
    console = stderr()
    columns = (
        TextColumn(name),
        MofNCompleteColumn(),
        BarColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(name, total=total, rate="")

        def update(done: int, made: float | int, seconds: float | int) -> None:
            bar.update(task, completed=done, rate=says(made, seconds))

        yield update


@contextlib.contextmanager
def copying(name: str) -> Iterator[Callable[[int, int], None]]:
    """A bar that is told the bytes that are done, and all; none if stderr is no terminal."""
    console = stderr()
    columns = (TextColumn(name), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(name, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
