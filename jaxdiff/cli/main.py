"""The command `jaxdiff`. Errors are one line on stderr; exit codes: 1 a row was refused, 2 bad input, 130 Ctrl-C."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import jax
import typer

import jaxdiff
from jaxdiff.cli.bench import bench
from jaxdiff.cli.convert import convert, export
from jaxdiff.cli.demo import demo
from jaxdiff.cli.evaluate import evaluate
from jaxdiff.cli.generate import generate
from jaxdiff.cli.inspect import inspect
from jaxdiff.cli.learn import collect, fit
from jaxdiff.cli.show import stderr
from jaxdiff.cli.train import train
from jaxdiff.files import clear_scratch
from jaxdiff.types import InputError

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
for command in (demo, generate, evaluate, train, collect, fit, convert, export, inspect, bench):
    app.command("eval" if command is evaluate else command.__name__)(command)


def _show_version(asked: bool) -> bool:
    if asked:
        print(f"jaxdiff {jaxdiff.__version__}")
        raise typer.Exit
    return asked


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Print the version.")
    ] = False,
) -> None:
    """Compiled decoding for masked diffusion language models."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code. Without `arguments` it is the program, and takes its signals."""
    if arguments is None:
        _leave_on_interrupt()
    _use_compilation_cache()
    try:
        code = app(arguments, prog_name="jaxdiff", standalone_mode=False)
        sys.stdout.flush()
        return code or 0
    except BrokenPipeError:  # the reader of our output left: nothing more to say, and nothing left to flush
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        return 130
    except typer.TyperException as error:
        return _refuse(error.format_message())
    except InputError as error:
        return _refuse(str(error))
    except OSError as error:
        if error.filename is None:
            raise
        return _refuse(f"{error.filename}: {error.strerror}")


def _refuse(message: str) -> int:
    if message:  # there is none where the help was asked for, by giving no argument
        print("jaxdiff: " + " ".join(message.split()), file=sys.stderr)
    return 2


def _leave_on_interrupt() -> None:
    """Ctrl-C ends the program at once: Python's own handler would wait until a compiled decode is over."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        # That the thread below leaves is enough: an exception in the middle of someone's clean-up would be printed.
        signal.signal(signal.SIGINT, lambda *_: None)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer)

    def watch() -> None:
        while os.read(reader, 1)[0] != signal.SIGINT:
            pass
        stderr().show_cursor()  # a progress bar may have hidden it
        clear_scratch()
        os._exit(130)

    threading.Thread(target=watch, daemon=True).start()


def _use_compilation_cache() -> None:
    """Keep compiled programs in the user's cache folder, unless JAX_COMPILATION_CACHE_DIR names another."""
    if jax.config.values["jax_compilation_cache_dir"] is None:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        jax.config.update("jax_compilation_cache_dir", str(Path(home) / "jaxdiff" / "xla"))


if __name__ == "__main__":
    sys.exit(main())
