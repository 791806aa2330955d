"""A recipe: all that a training run depends on, as a JSON file beside the model it made."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from jaxdiff.files import parse_json, refusing, replaced_file, write_object
from jaxdiff.tasks import TASKS
from jaxdiff.train.data import Bucket
from jaxdiff.types import InputError

MOST = 2**31 - 1
# The least and the most of each number: whole ones and others.
NUMBERS: dict[str, tuple[float | int, float | int]] = {
    "steps": (1, MOST),
    "warmup": (0, MOST),
    "decay": (0, MOST),
    "learning_rate": (0.0, 1e30),
    "weight_decay": (0.0, 1e30),
    "clip": (1e-30, 1e30),
    "semi_ar": (0.0, 1.0),
    "in_order": (0.0, 1.0),
    "block_length": (1, MOST),
    "tokenizer_problems": (1, MOST),
    "save_every": (1, MOST),
    "seed": (0, 2**32 - 1),
}
OF_A_BUCKET: dict[str, tuple[float | int, float | int]] = {
    "length": (1, MOST),
    "rows": (1, MOST),
    "weight": (0.0, 1e30),
    "shortest": (0, MOST),
    "since": (0, MOST),
    "until": (0, MOST),
}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Model shape, data, objective and optimizer of one run. Lengths are in tokens, rates per step."""

    task: str  # the tokenizer's corpus
    model: dict[str, Any]  # LladaConfig fields, less the special ids
    problems: dict[str, int]  # training problems of each task
    buckets: tuple[Bucket, ...]
    steps: int
    warmup: int = 200
    decay: int = 1000  # the last steps, over which the rate falls to 0
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    clip: float = 1.0
    semi_ar: float = 0.5  # share of the rows that are noised as decoding sees them (`objective.corrupt`)
    in_order: float = 0.0  # share of those that are masked from the right
    block_length: int = 32
    tokenizer_problems: int = 20000
    save_every: int = 200
    init: str | None = None  # a run or model folder whose parameters and tokenizer this run starts from
    seed: int = 0

    def __post_init__(self) -> None:
        least = self.warmup + self.decay
        if self.steps < least:
            raise InputError(f"steps: found {self.steps}, expected warmup + decay = {least} or more; raise --steps")

    @classmethod
    def read(cls, path: Path) -> Recipe:
        """Raises InputError for a file that is missing, not JSON, or has other fields, or values that make no run."""
        damage = (OSError, ValueError, KeyError, TypeError, RecursionError)
        with refusing(f"recipe {path}: cannot be read", kinds=damage):
            raw = parse_json(path.read_text(encoding="utf-8-sig"))
            if not isinstance(raw, dict):
                raise ValueError(f"found {type(raw).__name__}, expected an object")
            try:
                _check(raw)
                buckets = tuple(Bucket(**b) for b in raw.pop("buckets"))
                return cls(buckets=buckets, **raw)
            except InputError as error:
                raise InputError(f"recipe {path}: {error}") from error

    def write(self, path: Path) -> None:
        """As a whole or not at all."""
        with replaced_file(path) as new:
            write_object(new, dataclasses.asdict(self))


def _check(raw: dict[str, Any]) -> None:
    """Raises InputError, which names the key, for a value of another type, out of range, or of no known task."""
    _check_numbers("", raw, NUMBERS)
    model, problems, buckets = (raw.get(name) for name in ("model", "problems", "buckets"))
    if not isinstance(model, dict):
        raise InputError(f"model: found {model!r:.80}, expected an object of the model's shapes")
    _check_number("model.vocab_size", model.get("vocab_size"), (1, MOST))
    if not isinstance(problems, dict) or not problems:
        raise InputError(f"problems: found {problems!r:.80}, expected an object, task to number of problems")
    for name, count in problems.items():
        _check_task(f"problems.{name}", name, list(TASKS))
        _check_number(f"problems.{name}", count, (1, MOST))
    _check_task("task", raw.get("task"), list(TASKS))
    if not isinstance(raw.get("init"), str | None):
        raise InputError(f"init: found {raw['init']!r:.80}, expected a folder's name or null")
    if not isinstance(buckets, list) or not buckets or not all(isinstance(bucket, dict) for bucket in buckets):
        raise InputError(f"buckets: found {buckets!r:.80}, expected a list of one object or more")
    for place, bucket in enumerate(buckets):
        _check_task(f"buckets[{place}].task", bucket.get("task"), list(problems))
        _check_numbers(f"buckets[{place}].", bucket, OF_A_BUCKET)


def _check_task(where: str, name: Any, known: list[str]) -> None:
    if name not in known:
        raise InputError(f"{where}: found {name!r:.80}, expected one of {', '.join(known)}")


def _check_numbers(where: str, values: dict[str, Any], spans: dict[str, tuple[float | int, float | int]]) -> None:
    for name, value in values.items():
        if name in spans and (value is not None or name != "until"):  # null: to the end
            _check_number(f"{where}{name}", value, spans[name])


def _check_number(name: str, value: Any, span: tuple[float | int, float | int]) -> None:
    whole, (low, high) = isinstance(span[0], int), span
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float) or not low <= value <= high:
        kind = "a whole number" if whole else "a number"
        raise InputError(f"{name}: found {value!r:.80}, expected {kind} from {low:g} to {high:g}")
