"""A visit to a machine with one GPU: stages one after the other, each in its own process, all results in one JSON.

    bash experiments/gpu/run.sh OUT SECONDS [--small] [--again STAGE ...]

OUT/results.json is written anew after each stage; OUT/log.txt holds what the stages print. A stage that has a result,
in OUT or in experiments/gpu/results/, is not run again; training goes on from its last checkpoint. A stage that fails
or takes too long leaves its error, with what it had found until then, and the next one goes on.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from experiments.gpu.job import CARRIED, RESULTS, ROOT, WORK

TOTAL = 900  # seconds of a visit
GRACE = 8  # seconds between asking a stage to end and ending it
PACKAGES = [  # whose versions are told
    "jax",
    "jaxlib",
    "jax-cuda13-plugin",
    "flax",
    "optax",
    "orbax-checkpoint",
    "jaxtyping",
    "transformers",
    "tokenizers",
    "safetensors",
    "typer",
    "rich",
    "numpy",
    "pytest",
    "pytest-xdist",
    "hypothesis",
    "beartype",
    "qwix",
]
# Pure-Python packages that are carried: what is fetched, and the least version that a machine's own will do with.
WHEELS = {
    "beartype": ("0.23.1", "0.22"),
    "flax": ("0.12.12", "0.12.9"),
    "jaxtyping": ("0.3.11", "0.3.11"),
    "optax": ("0.2.8", "0.2.8"),
    "orbax-checkpoint": ("0.12.8", "0.12.8"),
    "qwix": ("0.1.8", "0.1.8"),
}


@dataclasses.dataclass(frozen=True)
class Stage:
    """A function of a module of this folder, and the seconds it may take: it is begun when so many are left.

    `rest`: it takes all that is left, and goes on in a later call; `limit` is the least that is worth a start.
    """

    name: str
    where: str
    limit: int
    rest: bool = False


STAGES = (
    Stage("decode", "parity.decode", 70),
    Stage("suite", "parity.suite", 60),
    Stage("shape", "shapes.shape", 230),
    Stage("attention", "shapes.attention", 70),
    Stage("int8", "shapes.int8", 100),
    Stage("shipped", "shipped.shipped", 100),
    Stage("train", "sibling.train", 150, rest=True),
)


def main() -> None:
    given = arguments()
    if given.list_wheels:
        print("\n".join(f"{name}=={fetched}" for name, (fetched, _) in WHEELS.items()))
        return
    until, out = time.monotonic() + given.seconds, Path(given.out).absolute()
    for folder in (out, WORK):
        folder.mkdir(parents=True, exist_ok=True)
    installed = install()
    machine, size = gpu(), "small" if given.small else "full"
    results = earlier(out, machine, size)
    results["setting"] = {"gpu": machine, "size": size, "python": sys.version.split()[0], **packages(installed)}
    for stage in STAGES:
        left = until - time.monotonic() - GRACE
        if stage.name in results["stages"] and not stage.rest and stage.name not in given.again:
            print(f"{stage.name}: has a result", flush=True)
        elif left < stage.limit:
            print(f"{stage.name}: not begun, {left:.0f} s are left, it may take {stage.limit}", flush=True)
        else:
            seconds = left if stage.rest else stage.limit
            results["stages"][stage.name] = run(stage, seconds, out, size)
            write(out / "results.json", results)
            print(f"{stage.name}: {json.dumps(results['stages'][stage.name])[:900]}", flush=True)
    write(out / "results.json", results)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", nargs="?", help="folder of results.json, log.txt and the checkpoint")
    parser.add_argument("seconds", nargs="?", type=float, help="of this call, in all")
    parser.add_argument("--small", action="store_true", help="tiny shapes, to try the script on a CPU")
    parser.add_argument("--again", nargs="*", default=[], choices=[s.name for s in STAGES], help="run these once more")
    parser.add_argument("--list-wheels", action="store_true", help="print what wheels.sh fetches, and nothing else")
    given = parser.parse_args()
    if not given.list_wheels and given.seconds is None:
        parser.error("OUT and SECONDS are needed")
    return given


def run(stage: Stage, seconds: float, out: Path, size: str) -> dict[str, Any]:
    """A stage in its own process: its status, its seconds, what it found, and its error if it has one."""
    file = WORK / f"{stage.name}.json"
    file.unlink(missing_ok=True)
    command = [sys.executable, "-m", "experiments.gpu.job", stage.where, str(file), str(out), str(seconds), size]
    since, status, error = time.monotonic(), "done", None
    with (out / "log.txt").open("ab") as log:
        log.write(f"== {stage.name}\n".encode())
        log.flush()
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment(), stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            status, error = "timed out", f"ended after {seconds:.0f} s"
        finally:
            end(process)
    if status == "done" and process.returncode:
        status, error = "failed", (out / "log.txt").read_text(errors="replace")[-1500:]
    found = json.loads(file.read_text()) if file.is_file() else {}
    wrong = [name for name, value in found.items() if isinstance(value, dict) and "error" in value]
    if status == "done" and wrong:
        status = "partly"
    result = {"status": status, "seconds": round(time.monotonic() - since, 1), "found": found}
    return result | ({} if error is None else {"error": error})


def end(process: subprocess.Popen[bytes]) -> None:
    """Ends a stage and the processes it started; one that is asked may still write what it has."""
    for what, seconds in ((signal.SIGTERM, GRACE), (signal.SIGKILL, None)):
        if process.poll() is not None:
            return
        os.killpg(process.pid, what)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            continue


def environment() -> dict[str, str]:
    path = [str(WORK / "site"), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(path),
        "JAX_COMPILATION_CACHE_DIR": os.environ.get("JAX_COMPILATION_CACHE_DIR", str(WORK / "compiled")),
    }


def earlier(out: Path, machine: str, size: str) -> dict[str, Any]:
    """The results so far: those of OUT, else those put into results/; of another GPU or size they do not count."""
    for folder in (out, RESULTS):
        file = folder / "results.json"
        if file.is_file():
            results = json.loads(file.read_text())
            if (results["setting"]["gpu"], results["setting"]["size"]) == (machine, size):
                return results
            print(f"{file}: of {results['setting']['gpu']}, {results['setting']['size']}; not taken", flush=True)
    return {"stages": {}}


def write(file: Path, results: dict[str, Any]) -> None:
    scratch = file.with_suffix(".new")
    scratch.write_text(json.dumps(results, indent=1) + "\n")
    scratch.replace(file)


def gpu() -> str:
    """The GPU's name and driver as the driver tells them; "none" where there is none."""
    command = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return "none"
    return found.stdout.strip().splitlines()[0]


def install() -> list[str]:
    """Installs the carried wheels that this machine lacks, or has too old, into a folder in front of its own."""
    from packaging.version import Version

    sys.path.insert(0, str(WORK / "site"))  # what an earlier call installed counts, and is told by `packages`
    wanted = []
    for name, (_, least) in WHEELS.items():
        has = has_version(name)
        if has is None or Version(has) < Version(least):
            wanted += sorted((CARRIED / "wheels").glob(f"{name.replace('-', '_')}-*.whl"))
    if wanted:
        pip = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-compile", "--upgrade"]
        subprocess.run([*pip, "--target", str(WORK / "site"), *map(str, wanted)], check=False)
    return [file.name for file in wanted]


def packages(installed: list[str]) -> dict[str, Any]:
    versions = {name: has_version(name) for name in PACKAGES}
    missing = [name for name, found in versions.items() if found is None]
    return {"versions": versions, "missing": missing, "installed_wheels": installed}


def has_version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
