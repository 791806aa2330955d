"""One stage in a process of its own, started by `stages.py`: what it is given, and where it puts what it finds."""

from __future__ import annotations

import importlib
import json
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"  # of earlier calls, where someone has put them
CARRIED = ROOT / "runs" / "gpu"  # made before, where there is a network: wheels, problems, tokenizer
WORK = ROOT / "runs" / "gpu-work"  # made on the machine: compiled programs, installed wheels


class Job:
    """What a stage may use.

    Attributes:
        small: shrink the shapes; nothing else changes.
        out: the folder that goes home.
        found: what it has found so far, as JSON values.
    """

    def __init__(self, file: Path, out: Path, seconds: float, small: bool) -> None:
        self.small, self.out, self.found = small, out, dict[str, Any]()
        self._file, self._until = file, time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds until the stage is ended from outside."""
        return self._until - time.monotonic()

    def put(self, **found: Any) -> None:
        """Add to what was found, and write all of it: whatever ends the process, this much is kept."""
        self.found |= found
        scratch = self._file.with_suffix(".new")
        scratch.write_text(json.dumps(self.found))
        scratch.replace(self._file)

    def part(self, name: str, call: Callable[[], Any]) -> Any:
        """What `call` returns, put as `name`; an error is put there in its place, and None returned."""
        since = time.monotonic()
        try:
            value = call()
        except Exception as error:
            traceback.print_exc()
            self.put(**{name: {"error": f"{type(error).__name__}: {error}"[:500]}})
            return None
        print(f"  {name}: {time.monotonic() - since:.1f} s", flush=True)
        self.put(**{name: value})
        return value

    def device(self) -> None:
        """Put what the stage runs on; JAX takes the device's memory here."""
        import jax

        self.put(device=jax.devices()[0].device_kind, platform=jax.default_backend())

    def memory(self) -> None:
        """Put the most bytes that were in use on the device so far, where it tells."""
        import jax

        stats = jax.devices()[0].memory_stats() or {}
        self.put(peak_bytes=stats.get("peak_bytes_in_use"))


def main() -> None:
    where, file, out, seconds, size = sys.argv[1:]
    module, function = where.split(".")
    job = Job(Path(file), Path(out), float(seconds), size == "small")
    getattr(importlib.import_module(f"experiments.gpu.{module}"), function)(job)


if __name__ == "__main__":
    main()
