"""500 odd folders and 500 odd JSONL files, drawn from a seed, through `jaxdiff generate`: what became of them.

    python -m experiments.fuzz [SEED]      writes experiments/results/fuzz.json; exit code 1 where one failed

The drawing and the judgement are those of `tests/faults/fuzz.py`.
"""

from __future__ import annotations

import collections
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import jax
from hypothesis import given, settings

from tests import programs
from tests.faults import fuzz

COUNT = 500
RESULT = Path(__file__).parent / "results" / "fuzz.json"


def drawn(strategy: Any, judge: Callable[[Any], tuple[fuzz.Ran, list[str]]], seed: int) -> dict[str, Any]:
    """COUNT drawn cases: exit codes, seconds, and the faults with the case that shows each."""
    codes: collections.Counter[str] = collections.Counter()
    failures, longest, since = [], 0.0, time.perf_counter()
    done = 0

    @hypothesis.seed(seed)
    @settings(
        max_examples=COUNT,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate],
        derandomize=False,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @given(case=strategy)
    def one(case: Any) -> None:
        nonlocal longest, done
        begun = time.perf_counter()
        ran, faults = judge(case)
        longest, done = max(longest, time.perf_counter() - begun), done + 1
        codes[str(ran.code)] += 1
        if faults:
            failures.append({"case": repr(case)[:500], "faults": faults, "stderr": ran.err[:500]})
            print(failures[-1], file=sys.stderr)
        if done % 50 == 0:
            print(f"{done} of {COUNT}, {len(failures)} failures", file=sys.stderr)

    one()
    return {
        "drawn": done,
        "exit_codes": dict(sorted(codes.items())),
        "failures": failures,
        "seconds": round(time.perf_counter() - since, 1),
        "longest_seconds": round(longest, 1),
    }


def main() -> int:
    seed = int(sys.argv[1]) if len(sys.argv) > 1 else 0
    with tempfile.TemporaryDirectory() as scratch, programs.shared():
        jax.config.update("jax_compilation_cache_dir", f"{scratch}/xla")
        homes = [Path(scratch) / name for name in ("folders", "files")]
        for home in homes:
            home.mkdir()
        found = {
            "seed": seed,
            "jax": jax.__version__,
            "folders": drawn(fuzz.changes(), fuzz.Folders(homes[0]).judge, seed),
            "files": drawn(fuzz.files(), fuzz.Files(homes[1]).judge, seed),
        }
    RESULT.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    counts = {name: len(found[name]["failures"]) for name in ("folders", "files")}
    print(json.dumps({"seed": seed, "failures": counts}))
    return 1 if any(counts.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
