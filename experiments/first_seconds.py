"""What a person waits for before the first answer: seconds of whole commands, cold (no program is kept) and warm.

    python experiments/first_seconds.py prompt    # a minute each on two cores; nothing else may run
    python experiments/first_seconds.py file
    python experiments/first_seconds.py eval

`prompt`: `--version`, and one prompt by the learned filter and by the standard policy: seconds until the first byte on
stdout, and until the end. `file`: 100 rows of ragged lengths (a fifth of them two or three problems long), to a file
and to stdout. `eval`: 100 problems. Commands take turns, ROUNDS times; a cold one has an empty cache folder, the warm
one after it the same folder. `keys`, of `prompt`: a call's keys for 1 and for 64 rows. Writes
results/first_seconds.json.
"""

from __future__ import annotations

import compileall
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROUNDS, ROWS = 5, 100
PROMPT = "Mara has 3 apples. She buys 4 more and gives 2 to Tom. How many apples does Mara have?"
COMMAND = (sys.executable, "-m", "jaxdiff_command")
LEARNED = ("--policy", "learned", "--stop", "eos")
HOME = Path(__file__).resolve().parents[1]
RESULTS = HOME / "experiments" / "results" / "first_seconds.json"
Waits = dict[str, list[float]]


def run(arguments: Sequence[str], cache: Path) -> tuple[float, float, str]:
    """Seconds until the first byte on stdout, seconds until the end, and stdout."""
    named = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache), "PYTHONPATH": str(HOME)}
    named.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed package has its bytecode
    since = time.perf_counter()
    with subprocess.Popen(
        [*COMMAND, *arguments], env=named, bufsize=0, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        first = process.stdout.read(1)
        until_first = time.perf_counter() - since
        rest, said = process.communicate()
    if process.returncode:
        raise SystemExit(said.decode())
    return until_first, time.perf_counter() - since, (first + rest).decode()


def timed(waits: Waits, name: str, arguments: Sequence[str], cache: Path) -> str:
    first, end, out = run(arguments, cache)
    waits.setdefault(f"{name}: first byte", []).append(first)
    waits.setdefault(f"{name}: end", []).append(end)
    return out


def counted(waits: Waits, name: str, arguments: Sequence[str], cache: Path) -> None:
    """A command with --json, which also says what compiling and decoding took."""
    summary = json.loads(timed(waits, name, [*arguments, "--json"], cache))
    for key in ("compile_seconds", "seconds"):
        waits.setdefault(f"{name}: {key}", []).append(summary[key])


def prompt(waits: Waits, cache: Path) -> None:
    timed(waits, "--version", ["--version"], cache)
    ways = {"learned, eos": LEARNED, "standard, eos": (), "standard, none": ("--stop", "none")}
    for way, options in ways.items():
        for state in ("cold", "warm"):
            timed(waits, f"{way}, {state}", ["generate", PROMPT, *options], cache)


def keys(waits: Waits) -> None:
    import jax

    from jaxdiff.decode.arrays import checked_keys

    key = jax.random.key(0)
    for rows in (1, 64):
        jax.block_until_ready(checked_keys(key, rows))
        since = time.perf_counter()
        for _ in range(100):
            jax.block_until_ready(checked_keys(key, rows))
        waits.setdefault(f"keys of {rows} rows", []).append((time.perf_counter() - since) / 100)


def file(waits: Waits, cache: Path) -> None:
    from jaxdiff.tasks import task

    questions = [problem.question for problem in itertools.islice(task("gsm_symbolic").problems("test", 0), ROWS)]
    rows, out = cache / "rows.jsonl", cache / "out.jsonl"
    ragged = (" ".join([text] * (1 + n % 3 if n % 5 == 0 else 1)) for n, text in enumerate(questions))
    rows.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in ragged))
    for state in ("cold", "warm"):
        counted(waits, f"file, {state}", ["generate", "--in", str(rows), "--out", str(out), *LEARNED], cache)
    timed(waits, "file to stdout, warm", ["generate", "--in", str(rows), *LEARNED], cache)


def evaluation(waits: Waits, cache: Path) -> None:
    for state in ("cold", "warm"):
        counted(waits, f"eval, {state}", ["eval", "--n", str(ROWS), *LEARNED], cache)


PARTS = {"prompt": prompt, "file": file, "eval": evaluation}


def main(name: str) -> None:
    from jaxdiff.bench.clock import Median

    compileall.compile_dir(HOME / "jaxdiff", quiet=1)
    waits: Waits = {}
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory() as cache:
            PARTS[name](waits, Path(cache))
        if name == "prompt":
            keys(waits)
    found: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    found[name] = {wait: Median.of(values).__dict__ for wait, values in waits.items()}
    RESULTS.write_text(json.dumps(dict(sorted(found.items())), indent=1) + "\n")
    for wait, median in found[name].items():
        print(f"{wait:40s} {median['median']:.4f} ({median['low']:.4f} to {median['high']:.4f})")


if __name__ == "__main__":
    main(sys.argv[1])
