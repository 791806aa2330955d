"""The console script `jaxdiff`: what is told before jax is imported, and what goes wrong while it is.

It stands beside the package `jaxdiff`, of which any import is an import of jax.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import signal
import sys
import traceback
from typing import NoReturn

OFF = ("", "0", "false", "no", "off", "n", "f")  # of JAXDIFF_DEBUG


def main() -> int:
    """Run the program; returns the exit code where it ends before the command line is read, else does not return.

    Exit codes: 1 jax or jaxdiff cannot be imported, 130 Ctrl-C in the meantime; else those of `jaxdiff.cli.main`.
    """
    if sys.argv[1:] == ["--version"]:
        # Where there is no such package, or stdout takes nothing, the whole program has the words for it.
        from importlib.metadata import PackageNotFoundError, version

        with contextlib.suppress(PackageNotFoundError, OSError):
            print(f"jaxdiff {version('jaxdiff')}", flush=True)
            return 0
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # until the program takes its signals itself
        signal.signal(signal.SIGINT, lambda number, frame: os._exit(128 + number))
    # The collector finds nothing among what imports make. Without it then, and with those objects left out of what it
    # looks at later, a first answer takes about a sixth less processor time.
    gc.disable()
    try:
        from jaxdiff.cli.main import main as run
    except Exception as error:
        if "--debug" in sys.argv or os.environ.get("JAXDIFF_DEBUG", "").lower() not in OFF:
            traceback.print_exception(error)
        print(f"jaxdiff: {_line_of(error)}", file=sys.stderr)
        return 1
    gc.freeze()
    gc.enable()
    _leave(run())


def _leave(code: int) -> NoReturn:
    """End the program without taking the interpreter apart, which takes a third of a second with jax in it."""
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(code)


def _line_of(error: Exception) -> str:
    """Why jax or jaxdiff cannot be imported, and the mend: most often a variable that jax reads meanwhile."""
    why = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, ImportError):
        package = (error.name or "").partition(".")[0]
        return f"{package or 'a package'} cannot be imported ({why}); pip install {package or 'it again'}"
    asked = [name for name in os.environ if name.startswith(("JAX_", "XLA_")) and name in why.upper()]
    if asked:
        name = max(asked, key=len)
        return f"{name}: found {os.environ[name]!r}, which jax does not take ({why}); correct it, or unset it"
    return f"jax cannot be imported ({type(error).__name__}: {why}); `jaxdiff --debug` shows where"
