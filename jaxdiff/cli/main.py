"""The command `jaxdiff`. Errors are one line on stderr.

Exit codes: 1 a row was refused, 2 bad input, 130 Ctrl-C, 143 SIGTERM.
"""

from __future__ import annotations

import contextvars
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import jax
import typer
import typer.core

import jaxdiff
from jaxdiff.cli import errors
from jaxdiff.cli.bench import bench
from jaxdiff.cli.convert import convert, export
from jaxdiff.cli.demo import demo
from jaxdiff.cli.evaluate import evaluate
from jaxdiff.cli.generate import generate
from jaxdiff.cli.inspect import inspect
from jaxdiff.cli.learn import collect, fit
from jaxdiff.cli.lm_eval import lm_eval
from jaxdiff.cli.pages import show
from jaxdiff.cli.serve import serve
from jaxdiff.cli.show import drop, stderr
from jaxdiff.cli.train import distill, train
from jaxdiff.files import FULL, clear_scratch
from jaxdiff.hub import clear_unfinished

MIN_SECONDS = "jax_persistent_cache_min_compile_time_secs"
GOOGLE = "0x1ae0"  # who makes TPUs, as PCI devices name it


class Command(typer.core.TyperCommand):
    """One whose context is of the class that typer has annotated, which `eval` asks for."""

    context_class = typer.Context


app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
CALLS = (demo, generate, show, serve, evaluate, lm_eval, train, distill, collect, fit, convert, export, inspect, bench)
for command in CALLS:
    name = "eval" if command is evaluate else command.__name__.replace("_", "-")
    app.command(name, cls=Command)(command)

_debug = contextvars.ContextVar("debug", default=False)  # errors show their traceback beside their line


def _show_version(asked: bool) -> bool:
    if asked:
        print(f"jaxdiff {jaxdiff.__version__}")
        raise typer.Exit
    return asked


@app.callback(help="Compiled decoding for masked diffusion language models.")
def _options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Print the version.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", envvar="JAXDIFF_DEBUG", help="Show an error's traceback beside its line.")
    ] = False,
) -> None:
    _debug.set(debug)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code. Without `arguments` it is the program, and takes its signals.

    Raises, with a request to report it, what is a mistake in jaxdiff (`errors.ours`).
    """
    if arguments is None:
        _leave_on_interrupt()
    _open_streams()
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # as our own
    _use_compilation_cache()
    _pass_libtpu_by()
    _debug.set(False)
    try:
        with jax.enable_x64(False):  # whatever JAX_ENABLE_X64 says: models compute in float32 or bfloat16
            code = app(arguments, prog_name="jaxdiff", standalone_mode=False)
        sys.stdout.flush()
        return code or 0
    except BrokenPipeError:  # the reader of our output left: nothing more to say, and nothing left to flush
        drop(sys.stdout)
        return 141
    except KeyboardInterrupt:
        return 130
    except typer.TyperException as error:
        return _refuse(error.format_message())
    except Exception as error:
        # What is written to a file of ours names it: a full disk without a name is where stdout goes.
        if isinstance(error, OSError) and error.filename is None and (not _flushed() or error.errno in FULL):
            drop(sys.stdout)
            error.filename = "stdout"
        if errors.ours(error):
            error.add_note(errors.REPORT)
            raise
        if _debug.get():
            traceback.print_exc()
        return _refuse(errors.line_of(error))


def _refuse(message: str) -> int:
    if message:  # there is none where the help was asked for, by giving no argument
        try:
            print("jaxdiff: " + " ".join(message.split()), file=sys.stderr)
        except OSError:
            drop(sys.stderr)
    return 2


def _open_streams() -> None:
    """Output that is closed goes nowhere; one that cannot show a character shows a replacement for it."""
    while (opened := os.open(os.devnull, os.O_RDWR)) <= 2:  # a closed one's number would go to the next file
        pass
    os.close(opened)
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if (reconfigure := getattr(stream, "reconfigure", None)) is not None:  # a caller's own stream may have none
            reconfigure(errors="replace")


def _flushed() -> bool:
    """Whether stdout takes what is left in its buffer."""
    try:
        sys.stdout.flush()
    except OSError:
        return False
    return True


def _leave_on_interrupt() -> None:
    """Ctrl-C and SIGTERM end the program at once: Python's handler would wait until a compiled decode is over.

    SIGTERM alone while nobody else has a handler for it: training saves a checkpoint first.
    """

    def leave(number: int, frame: object) -> None:
        """That the thread below leaves is enough: an exception in the middle of someone's clean-up would be printed."""

    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, leave)
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, leave)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer)

    def watch() -> None:
        number = 0
        while number != signal.SIGINT and not (number == signal.SIGTERM and signal.getsignal(number) is leave):
            number = os.read(reader, 1)[0]
        stderr().show_cursor()  # a progress bar may have hidden it
        clear_scratch()
        clear_unfinished()
        os._exit(128 + number)

    threading.Thread(target=watch, daemon=True).start()


def _use_compilation_cache() -> None:
    """Keep compiled programs in the user's cache folder, unless JAX_COMPILATION_CACHE_DIR names another.

    Where there is no such folder that can be written, programs are compiled anew by each command. A program that cannot
    be kept or read, as on a full disk, is compiled again: nothing to tell.
    """
    if MIN_SECONDS.upper() not in os.environ:  # small programs too: there are a few, and each is a wait
        jax.config.update(MIN_SECONDS, 0.0)
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache", UserWarning)
    if jax.config.values["jax_compilation_cache_dir"] is None and (folder := _cache_folder()) is not None:
        jax.config.update("jax_compilation_cache_dir", str(folder))


def _pass_libtpu_by() -> None:
    """Where libtpu is installed and no TPU is there, JAX is not to try it: it says so at length on stderr.

    A plugin for another device is left to JAX, and so is any device of Google's, which may be a TPU.
    """
    if jax.config.values["jax_platforms"] or "JAX_FORCE_TPU_INIT" in os.environ or find_spec("libtpu") is None:
        return
    vendors = (file.read_text(encoding="ascii").strip() for file in Path("/sys/bus/pci/devices").glob("*/vendor"))
    if find_spec("jax_plugins") is None and GOOGLE not in vendors:
        jax.config.update("jax_platforms", "cpu")


def _cache_folder() -> Path | None:
    asked = os.environ.get("XDG_CACHE_HOME", "")
    try:
        # One that is not absolute is to be passed over (XDG Base Directory Specification).
        folder = (Path(asked) if os.path.isabs(asked) else Path.home() / ".cache") / "jaxdiff" / "xla"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: neither HOME nor the user's entry says where home is
        return None
    return folder if os.access(folder, os.W_OK | os.X_OK) else None


if __name__ == "__main__":
    sys.exit(main())
