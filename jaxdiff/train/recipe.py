"""A recipe: all that a training run depends on, as a JSON file beside the model it made."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from jaxdiff.files import parse_json, refusing, replaced_file, write_object
from jaxdiff.train.data import Bucket
from jaxdiff.types import InputError


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
        """Raises InputError for a file that is missing, not JSON, or has other fields."""
        with refusing(
            f"recipe {path}: cannot be read", kinds=(OSError, ValueError, KeyError, TypeError, RecursionError)
        ):
            raw = parse_json(path.read_text(encoding="utf-8-sig"))
            buckets = tuple(Bucket(**b) for b in raw.pop("buckets"))
            return cls(buckets=buckets, **raw)

    def write(self, path: Path) -> None:
        """As a whole or not at all."""
        with replaced_file(path) as new:
            write_object(new, dataclasses.asdict(self))
