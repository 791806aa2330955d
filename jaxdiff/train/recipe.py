"""A recipe: all that a training run depends on, as a JSON file beside the model it made.

`Schedule` is what every run has, `Recipe` one of `jaxdiff train`, which starts from a tokenizer's corpus.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import jax
import numpy as np

from jaxdiff.files import parse_json, refusing, replaced_file, write_object
from jaxdiff.tasks import TASKS
from jaxdiff.train.data import Bucket, check_covered
from jaxdiff.train.embedding import EMBEDDINGS
from jaxdiff.train.noises import Noise
from jaxdiff.train.objectives import Objective
from jaxdiff.train.objectives import parse as parse_objective
from jaxdiff.types import InputError

MOST = 2**31 - 1
PARTS = ("objective", "noise")  # as `Schedule.parts` gives them
_S = TypeVar("_S", bound="Schedule")
Spans = dict[str, tuple[float | int, float | int]]  # the least and the most of each number: whole ones and others
NUMBERS: Spans = {
    "steps": (1, MOST),
    "warmup": (0, MOST),
    "decay": (0, MOST),
    "learning_rate": (0.0, 1e30),
    "weight_decay": (0.0, 1e30),
    "clip": (1e-30, 1e30),
    "save_every": (1, MOST),
    "seed": (0, 2**32 - 1),
}
# How the noise was written before it had a name, with the values of what is left out.
OLD_NOISE: Spans = {"semi_ar": (0.0, 1.0), "in_order": (0.0, 1.0), "block_length": (1, MOST)}
OLD_DEFAULTS = {"semi_ar": 0.5, "in_order": 0.0, "block_length": 32}
OF_A_BUCKET: Spans = {
    "length": (1, MOST),
    "rows": (1, MOST),
    "weight": (0.0, 1e30),
    "shortest": (0, MOST),
    "since": (0, MOST),
    "until": (0, MOST),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
    """Objective, noise, optimizer and length of a run. Rates are per step."""

    steps: int
    buckets: tuple[Bucket, ...]
    objective: str = "denoise"  # `name:k=v,...` of `jaxdiff.train.objectives`
    noise: str | None = None  # of `jaxdiff.train.noises`; None: the one that is published with the objective
    warmup: int = 200
    decay: int = 1000  # the last steps, over which the rate falls to 0
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    clip: float = 1.0
    save_every: int = 200
    seed: int = 0

    free: ClassVar[tuple[str, ...]] = ("steps", "decay")  # what may change while a run goes on: the plateau's length

    def __post_init__(self) -> None:
        least = self.warmup + self.decay
        if self.steps < least:
            raise InputError(f"steps: found {self.steps}, expected warmup + decay = {least} or more; raise --steps")
        check_covered(self.buckets, self.steps)
        self.parts()

    def parts(self) -> tuple[Objective, Noise]:
        """Raises InputError for an objective or a noise that is not known, or two that do not go together."""
        return parse_objective(self.objective, self.noise)

    @classmethod
    def read(cls: type[_S], path: Path) -> _S:
        """Raises InputError for a file that is missing, not JSON, or has other fields, or values that make no run."""
        damage = (OSError, ValueError, KeyError, TypeError, RecursionError)
        with refusing(f"recipe {path}: cannot be read", kinds=damage):
            raw = parse_json(path.read_text(encoding="utf-8-sig"))
            if not isinstance(raw, dict):
                raise ValueError(f"found {type(raw).__name__}, expected an object")
            try:
                check_numbers("", raw, NUMBERS)
                check_texts(raw, {"objective": False, "noise": True})
                return cls.of(raw)
            except InputError as error:
                raise InputError(f"recipe {path}: {error}") from error

    @classmethod
    def of(cls: type[_S], raw: dict[str, Any]) -> _S:
        """From what JSON holds. Raises InputError, which names the key, for a value that makes no run."""
        raise NotImplementedError

    def write(self, path: Path) -> None:
        """As a whole or not at all."""
        with replaced_file(path) as new:
            write_object(new, dataclasses.asdict(self))

    def check_same(self, saved: Path) -> None:
        """Raises InputError where the recipe that a run's folder holds is another one, but for what is `free`.

        Objective and noise are compared as what they mean: the same may be written in several ways, or left out.
        """
        old = type(self).read(saved)
        names = [field.name for field in dataclasses.fields(self) if field.name not in (*self.free, *PARTS)]
        changed = [name for name in names if getattr(old, name) != getattr(self, name)]
        parts = zip(PARTS, old.parts(), self.parts(), strict=True)
        if changed := changed + [name for name, before, now in parts if not _same(before, now)]:
            raise InputError(
                f"{saved.parent}: holds a run of another recipe ({', '.join(changed)} differ); name a new folder"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe(Schedule):
    """A model's shape and data besides. Lengths are in tokens."""

    task: str  # the tokenizer's corpus
    model: dict[str, Any]  # the family (default llada) and its config's fields, less the special ids
    problems: dict[str, int]  # training problems of each task
    tokenizer_problems: int = 20000
    tokenizer: str | None = None  # a model or run folder, or a model's name, whose tokenizer is taken; None: a new one
    init: str | None = None  # a model or run folder, or a model's name, whose parameters and tokenizer it starts from
    embedding: str = EMBEDDINGS[0]  # `jaxdiff.train.embedding`

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.init is not None and self.tokenizer is not None:
            raise InputError("tokenizer: found it beside init, whose tokenizer is taken; leave one of the two out")
        if self.embedding not in EMBEDDINGS:
            known = " or ".join(EMBEDDINGS)
            raise InputError(
                f"embedding: found {self.embedding!r:.80}, expected {known}; leave it out for {EMBEDDINGS[0]}"
            )
        objective, noise = self.parts()
        if objective.needs | noise.needs or objective.asks_teacher:
            raise InputError(
                f"objective: found {self.objective} with noise {noise_text(self)}, which learns from a teacher's "
                "decodes; run it with `jaxdiff distill`"
            )

    @classmethod
    def of(cls, raw: dict[str, Any]) -> Recipe:
        raw = _with_noise(raw)
        check_keys("", raw, cls)
        _check(raw)
        return cls(**raw | {"buckets": tuple(Bucket(**bucket) for bucket in raw["buckets"])})


def noise_text(recipe: Schedule) -> str:
    """The text of a run's noise, whoever chose it."""
    objective, _ = recipe.parts()
    return objective.noise if recipe.noise is None else recipe.noise


def _same(one: Any, other: Any) -> bool:
    """Whether two frozen pytrees are of one kind with the same numbers."""
    (ours, kind), (theirs, other_kind) = jax.tree.flatten(one), jax.tree.flatten(other)
    return kind == other_kind and all(map(np.array_equal, ours, theirs))


def _with_noise(raw: dict[str, Any]) -> dict[str, Any]:
    """A recipe in whose place of `noise` its numbers stood."""
    check_numbers("", raw, OLD_NOISE)
    old = {name: value for name, value in raw.items() if name in OLD_NOISE}
    if old and raw.get("noise") is not None:
        raise InputError(f"noise: found it beside {', '.join(old)}, which are its older spelling; keep one of the two")
    rest = {name: value for name, value in raw.items() if name not in OLD_NOISE}
    if not old:
        return rest
    share, in_order, block = (OLD_DEFAULTS | old).values()
    return rest | {"noise": f"semi_ar:share={share},in_order={in_order},block={block}"}


def _check(raw: dict[str, Any]) -> None:
    """Raises InputError, which names the key, for a value of another type, out of range, or of no known task."""
    check_numbers("", raw, {"tokenizer_problems": (1, MOST)})
    model, problems, buckets = (raw.get(name) for name in ("model", "problems", "buckets"))
    if not isinstance(model, dict):
        raise InputError(f"model: found {model!r:.80}, expected an object of the model's shapes")
    check_number("model.vocab_size", model.get("vocab_size"), (1, MOST))
    if not isinstance(problems, dict) or not problems:
        raise InputError(f"problems: found {problems!r:.80}, expected an object, task to number of problems")
    for name, count in problems.items():
        check_task(f"problems.{name}", name, list(TASKS))
        check_number(f"problems.{name}", count, (1, MOST))
    check_task("task", raw.get("task"), list(TASKS))
    check_texts(raw, {"tokenizer": True, "init": True})
    check_buckets(buckets, list(problems))


def check_buckets(buckets: Any, tasks: list[str]) -> None:
    """Raises InputError for what is no list of buckets of these tasks."""
    if not isinstance(buckets, list) or not buckets or not all(isinstance(bucket, dict) for bucket in buckets):
        raise InputError(f"buckets: found {buckets!r:.80}, expected a list of one object or more")
    for place, bucket in enumerate(buckets):
        check_keys(f"buckets[{place}].", bucket, Bucket)
        check_task(f"buckets[{place}].task", bucket["task"], tasks)
        check_numbers(f"buckets[{place}].", bucket, OF_A_BUCKET)
        if not isinstance(pack := bucket.get("pack", False), bool):
            raise InputError(f"buckets[{place}].pack: found {pack!r:.80}, expected true or false")


def check_keys(where: str, raw: dict[str, Any], kind: type[Any]) -> None:
    """Raises InputError for a key that is no field of a dataclass, and for a field without a default that lacks."""
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for name in raw:
        if name not in fields:
            raise InputError(f"{where}{name:.80}: not known, expected one of {', '.join(fields)}")
    for name, field in fields.items():
        if name not in raw and field.default is dataclasses.MISSING:
            raise InputError(f"{where}{name}: found none, expected it; only what has a default may be left out")


def check_task(where: str, name: Any, known: list[str]) -> None:
    if name not in known:
        raise InputError(f"{where}: found {name!r:.80}, expected one of {', '.join(known)}")


def check_numbers(where: str, values: dict[str, Any], spans: Spans) -> None:
    for name, value in values.items():
        if name in spans and (value is not None or name != "until"):  # null: to the end
            check_number(f"{where}{name}", value, spans[name])


def check_number(name: str, value: Any, span: tuple[float | int, float | int]) -> None:
    whole, (low, high) = isinstance(span[0], int), span
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float) or not low <= value <= high:
        kind = "a whole number" if whole else "a number"
        raise InputError(f"{name}: found {value!r:.80}, expected {kind} from {low:g} to {high:g}")


def check_texts(raw: dict[str, Any], names: dict[str, bool]) -> None:
    """Texts by name, and whether null may stand for one."""
    for name, optional in names.items():
        value = raw.get(name, "")
        if not (isinstance(value, str) or (optional and value is None)):
            raise InputError(f"{name}: found {value!r:.80}, expected a text{' or null' if optional else ''}")
