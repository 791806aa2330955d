"""Programs that a model wrote, run where they can do no harm: a process for each, with no network, few rights, an end.

A program can compute and import what Python and the packages beside jaxdiff hold. It can open no socket, start no
process, signal none, write no file, and read none but libraries; its output is thrown away, its input empty. Linux
confines it (`confined.py`): without privileges, in a container too, and for root as for anybody. Where that cannot be
had (`check`) nothing is run.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import secrets
import select
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Literal, cast, get_args

from jaxdiff.types import InputError

Verdict = Literal["passed", "failed", "timeout", "memory"]
CONFINED = Path(__file__).with_name("confined.py")
ELSEWHERE = (
    "run generated code on Linux 5.13 or later with Landlock and seccomp, on x86_64 or aarch64; texts that were made "
    "here can be scored there"
)
# Sets in the same order each time, so that a verdict is; one thread, for memory's sake.
ENVIRONMENT = {"PYTHONHASHSEED": "0", "PYTHONUTF8": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
PROBE = "import collections, datetime, decimal, hashlib, heapq, itertools, math, random, re, statistics, string, typing"
DETAIL = 200  # characters


@dataclasses.dataclass(frozen=True)
class Limits:
    """Of one program: seconds of processor time, seconds on the wall, bytes of memory."""

    seconds: int = 3
    wall: float = 15.0
    memory: int = 1 << 30

    def __post_init__(self) -> None:
        if self.seconds < 1 or self.wall <= 0 or self.memory < 1 << 26:
            raise InputError(
                f"limits: found {self}, expected seconds of at least 1, wall above 0, memory of at least {1 << 26}"
            )


LIMITS = Limits()


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a program. `passed`: its last line was run, and no exception was left over.

    Args:
        detail: the exception in one line of at most 200 printable characters, or how the process ended.
        seconds: from start to end, on the wall.
    """

    verdict: Verdict
    detail: str
    seconds: float

    @property
    def passed(self) -> bool:
        return self.verdict == "passed"


def run(program: str, limits: Limits = LIMITS) -> Outcome:
    """Runs a program, to its end or to a limit.

    A program that sets out to forge its verdict shares a process with what tells it; printing, raising, or ending the
    process early (`sys.exit`, `os._exit`) is no pass.

    Raises InputError where programs cannot be confined.
    """
    _check_platform()
    word = secrets.token_hex(16)
    folders = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
    head = "\t".join((word, str(limits.seconds), str(limits.memory), *folders))
    began = time.monotonic()
    with tempfile.TemporaryFile() as asked:
        asked.write(f"{head}\n{program}".encode("utf-8", "surrogatepass"))
        asked.seek(0)
        with _started(asked) as process:
            try:
                ended = _waited(process, began + limits.wall)
            finally:
                process.kill()
            record = os.read(_pipe(process), 4096).decode("utf-8", "replace") if ended else ""
    seconds = time.monotonic() - began
    if not ended:
        return Outcome("timeout", f"over {limits.wall:g} s", seconds)
    if process.returncode == -signal.SIGXCPU:
        return Outcome("timeout", f"over {limits.seconds} s of the processor", seconds)
    said, _, rest = record.partition("\t")
    verdict, _, detail = rest.partition("\t")
    detail = "".join(letter if letter.isprintable() else " " for letter in detail).strip()[:DETAIL]
    if said == word and verdict == "refused":
        raise InputError(f"sandbox: cannot confine a program: {detail}; {ELSEWHERE}")
    if said == word and verdict in get_args(Verdict):
        return Outcome(cast("Verdict", verdict), detail, seconds)
    return Outcome("failed", f"the process ended before the program's last line ({_end(process.returncode)})", seconds)


def run_all(programs: Iterable[str], limits: Limits = LIMITS, *, workers: int | None = None) -> list[Outcome]:
    """The outcome of each program, in their order; `workers` run at a time, by default one for each processor, up to 8.

    Raises InputError as `run` does.
    """
    _check_platform()
    with ThreadPoolExecutor(workers or min(8, len(os.sched_getaffinity(0)))) as pool:
        return list(pool.map(functools.partial(run, limits=limits), programs))


def check() -> None:
    """Raises InputError where programs cannot be confined, or confined cannot import Python's own library."""
    found = run(PROBE)
    if not found.passed:
        raise InputError(f"sandbox: a confined program cannot import Python's own library: {found.detail}; {ELSEWHERE}")


def _check_platform() -> None:
    if sys.platform != "linux":
        raise InputError(f"sandbox: found {sys.platform}, expected linux; {ELSEWHERE}")


def _started(asked: IO[bytes]) -> subprocess.Popen[bytes]:
    """The process, with no descriptors of the caller's, nor its environment."""
    inherited = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}  # to find Python itself
    return subprocess.Popen(
        [sys.executable, "-P", "-s", "-S", "-B", str(CONFINED)],
        stdin=asked,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd="/",
        env=ENVIRONMENT | inherited,
        start_new_session=True,  # a Ctrl-C is the caller's
    )


def _waited(process: subprocess.Popen[bytes], until: float) -> bool:
    """Whether it ended by itself; what it left in the pipe, of at most a pipe's size, stays there."""
    poll = select.poll()
    poll.register(_pipe(process), 0)  # its other end is closed when the process ends, or before
    poll.poll(max(0.0, until - time.monotonic()) * 1000)
    try:
        process.wait(max(0.0, until - time.monotonic()))
    except subprocess.TimeoutExpired:
        return False
    return True


def _pipe(process: subprocess.Popen[bytes]) -> int:
    return cast("IO[bytes]", process.stdout).fileno()


def _end(code: int) -> str:
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name
