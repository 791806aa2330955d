"""What `jaxdiff eval --json` keeps so that it can be repeated, and what `jaxdiff eval --from` makes of it.

The file is the JSON object that was printed. Its `run` has the `options` by their names on the command line, each of
them, so that another default elsewhere changes nothing; the `versions`, the commit of a source tree (`git`), the
`device`, and digests of the weights and of the problems.
"""

from __future__ import annotations

import dataclasses
import platform
import subprocess
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import typer

import jaxdiff
from jaxdiff.cli.tally import MOST_NAMED
from jaxdiff.files import read_object
from jaxdiff.tasks import gsm_symbolic
from jaxdiff.types import InputError

KEYS = (
    *("accuracy", "accuracy_low", "accuracy_high", "nfe", "cheap", "work", "tpf", "seconds", "compile_seconds", "n"),
    *("not_finite", "task", "split", "seed", "model", "revision", "adapter", "weights", "policy", "insert", "stop"),
    *("guide", "guide_nfe"),
    *(
        "stop_strings",
        "constraint",
        "fill",
        "cache",
        "gen_length",
        "block_length",
        "length",
        "end_think",
        "end_think_boost",
    ),
    *("end_think_power", "near_ties", "verdicts", "nfe_each", "run"),
)
RUN = ("options", "versions", "git", "device", "weights", "decoder", "problems")
WHERE = ("model", "adapter", "guide", "mesh", "batch_size")  # where and how fast it is repeated; no answer hangs on it
OTHERS = ("from_file", "out_file", "as_json")  # the command's own: no options of what is repeated
MEND = "give a file that this version of jaxdiff eval --json wrote"
PACKAGES = ("jax", "jaxlib", "flax", "tokenizers", "transformers")
GIT_SECONDS = 10.0  # that git may take on a disk that does not answer


def run_of(asked: Mapping[str, Any], digests: Mapping[str, str]) -> dict[str, Any]:
    """What an evaluation needs to be repeated.

    Args:
        asked: its command's parameters; names of the hub with their commit, and what hangs on the device or the model
            by default as it was here.
        digests: of the weights, the decoder and the problems.
    """
    options = {"task" if name == "task_name" else name: value for name, value in asked.items() if name not in OTHERS}
    options |= {name: list(options[name] or ()) for name in ("stop_string", "ignore_config")}
    device = jax.local_devices()[0]
    used = {"qwix": options["weights"] is not None, "reasoning-gym": options["task"] == gsm_symbolic.NAME}
    packages = [*PACKAGES, *(name for name, is_used in used.items() if is_used)]
    return {
        "options": options,
        "versions": {"jaxdiff": jaxdiff.__version__, "python": platform.python_version()}
        | {name: version(name) for name in packages},
        "git": commit_of(Path(jaxdiff.__file__).resolve().parents[1]),
        "device": f"{device.platform} {device.device_kind}",
        **digests,
    }


def commit_of(tree: Path) -> str | None:
    """The commit of a source tree, with `-dirty` behind it where a tracked file is another; None where the folder is
    none (a wheel's, which has its version), and where git does not say it.
    """
    if not (tree / ".git").exists():
        return None
    git = ["git", "--no-optional-locks", f"--git-dir={tree / '.git'}", f"--work-tree={tree}"]
    asked = [*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(asked, capture_output=True, text=True, timeout=GIT_SECONDS, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


@dataclasses.dataclass(frozen=True)
class Record:
    """An evaluation as its file has it."""

    file: Path
    found: dict[str, Any]

    @classmethod
    def read(cls, file: Path) -> Record:
        """Raises InputError for a file that is no such object, by the name of a key that is unknown or missing."""
        found = read_object(file)
        _check_keys(f"{file}", found, KEYS)
        for name in ("run", "options", "versions"):
            inside = found["run"] if name == "run" else found["run"][name]
            if not isinstance(inside, dict):
                raise InputError(f"{file} {name}: found {str(inside)[:40]!r}, expected an object; {MEND}")
            if name == "run":
                _check_keys(f"{file} run", inside, RUN)
        verdicts, each = found["verdicts"], found["nfe_each"]
        if not (isinstance(verdicts, str) and isinstance(each, list) and len(verdicts) == len(each) == found["n"]):
            raise InputError(f"{file}: verdicts and nfe_each: expected one for each of n problems; {MEND}")
        return cls(file, found)

    def asked(self, context: typer.Context) -> dict[str, Any]:
        """The command's parameters: the file's, checked as if they were typed, with those of `WHERE` that were.

        Raises InputError, or what the command line raises for a bad value, and for options beside --from that would
        change what is repeated.
        """
        options = self.found["run"]["options"]
        named = {param.opts[0].removeprefix("--").replace("-", "_"): param for param in context.command.params}
        given = [
            name
            for name, param in named.items()
            if context.get_parameter_source(str(param.name)).name == "COMMANDLINE"  # type: ignore[union-attr]
        ]
        if other := [name for name in given if name not in (*WHERE, "from", "out", "json")]:
            raise InputError(
                f"--{other[0].replace('_', '-')}: found it beside --from, which repeats {self.file} as it was; leave "
                "one of the two out"
            )
        expected = [name for name, param in named.items() if param.name not in OTHERS and name != "help"]
        _check_keys(f"{self.file} options", options, expected)
        options = options | {name: context.params[str(named[name].name)] for name in WHERE if name in given}
        line: list[str] = []
        for name, value in options.items():
            option = named[name].opts[0]
            if isinstance(value, bool):
                line += [option] * value
            elif value is not None:
                line += [word for one in (value if isinstance(value, list) else [value]) for word in (option, str(one))]
        return dict(context.command.make_context("eval", line).params)

    def check(self, run: Mapping[str, Any]) -> None:
        """Raises InputError where what is here is not what was evaluated."""
        mends = {
            "weights": f"model {run['options']['model']} has other weights; name the one that was evaluated (--model), "
            "with its adapter (--adapter) and its guide (--guide) if it had one",
            "decoder": "a learned filter's, a drafter's or a default's numbers are others; take those of the file",
            "problems": "the task gives other problems, or the tokenizer other ids; take the versions of the file",
        }
        for name, mend in mends.items():
            if run[name] != self.found["run"][name]:
                raise InputError(
                    f"{name}: found {run[name]}, expected {self.found['run'][name]} of {self.file}: {mend}"
                )

    def compared(self, now: Mapping[str, Any]) -> dict[str, Any]:
        """Whether they agree: the same verdict and NFE for each problem; and what differs, then and now."""
        then = self.found
        turned = [
            at for at, pair in enumerate(zip(then["verdicts"], now["verdicts"], strict=True)) if len(set(pair)) > 1
        ]
        steps = [
            at for at, pair in enumerate(zip(then["nfe_each"], now["nfe_each"], strict=True)) if len(set(pair)) > 1
        ]
        same = {name: then[name] == now[name] for name in ("accuracy", "nfe")}
        around = {name: (then["run"]["versions"].get(name), ours) for name, ours in now["run"]["versions"].items()}
        around |= {name: (then["run"][name], now["run"][name]) for name in ("git", "device")}
        return {
            "agrees": not turned and not steps and all(same.values()),
            "verdicts_differ": turned,
            "nfe_differ": steps,
            "around_differs": {name: list(pair) for name, pair in around.items() if pair[0] != pair[1]},
            "then": {name: then[name] for name in ("accuracy", "nfe", "near_ties", "seconds")},
            "now": dict(now),
        }

    def line(self, compared: Mapping[str, Any]) -> str:
        """The one line that tells it."""
        then, now = compared["then"], compared["now"]
        around = "".join(f"; {name} {was}, now {one}" for name, (was, one) in compared["around_differs"].items())
        if compared["agrees"]:
            return f"agrees with {self.file}: the verdict and the NFE of each of {now['n']} problems{around}"
        parts = [f"{name} {then[name]:.6g}, now {now[name]:.6g}" for name in ("accuracy", "nfe")]
        parts += [
            f"another {what} of problems {_some(compared[name])}"
            for what, name in (("verdict", "verdicts_differ"), ("NFE", "nfe_differ"))
            if compared[name]
        ]
        return f"does not agree with {self.file}: {'; '.join(parts)}; near-ties {now['near_ties']}{around}"


def _some(numbers: list[int]) -> str:
    more = f" and {len(numbers) - MOST_NAMED} more" if len(numbers) > MOST_NAMED else ""
    return ", ".join(map(str, numbers[:MOST_NAMED])) + more


def _check_keys(where: str, found: Mapping[str, Any], expected: Iterable[str]) -> None:
    expected = list(expected)
    if unknown := [name for name in found if name not in expected]:
        raise InputError(f"{where}: found key {unknown[0]!r}, which is not known; {MEND}")
    if missing := [name for name in expected if name not in found]:
        raise InputError(f"{where}: found no key {missing[0]!r}; {MEND}")
