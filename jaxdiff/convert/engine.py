"""From published tensors to stacked leaves and back, by a plan; what does not fit is told all at once."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import ml_dtypes
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Sharding

from jaxdiff.convert.families import TABLES
from jaxdiff.convert.table import Plan, Shape
from jaxdiff.models import build, family_name, leaf_dtype
from jaxdiff.protocols import Model
from jaxdiff.types import InputError, Params
from jaxdiff.weights import plain

DTYPES = {kind.name: kind for kind in map(np.dtype, (np.float32, ml_dtypes.bfloat16, np.float16))}  # kept, to the bit
ROWS = 4096  # of two tensors that are compared
TOLD = 5  # of the tensors that lack, and of the others, in one line
Sharded = Callable[[str], Sharding | None]  # a leaf's path -> where it is to live
Then = Callable[[Params], Params]  # a leaf by its path -> what stays in its place


class Spec(NamedTuple):
    """What a file says of a tensor, before it is read."""

    shape: Shape
    dtype: str
    file: str


@runtime_checkable
class Tensors(Protocol):
    """Published tensors, read one at a time."""

    name: str  # where they lie, for messages
    specs: dict[str, Spec]

    def read(self, key: str, rows: slice) -> np.ndarray:
        """Rows of one tensor; in float32 where its numbers are computed. Raises InputError where the file does not give
        them.
        """
        ...


class Misfit(NamedTuple):
    """A tensor that a plan and a folder do not agree on."""

    file: str
    key: str
    found: str
    expected: str


class InMemory:
    """A mapping of arrays as `Tensors`."""

    name = "tensors"

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        self._arrays = arrays
        self.specs = {key: Spec(array.shape, array.dtype.name, self.name) for key, array in arrays.items()}

    def read(self, key: str, rows: slice) -> np.ndarray:
        return self._arrays[key][rows]


class Chosen:
    """Some of the tensors of others, under other names. `names`: theirs by ours."""

    def __init__(self, tensors: Tensors, names: Mapping[str, str]) -> None:
        self.name = tensors.name
        self.specs = {name: tensors.specs[there] for name, there in names.items()}
        self._tensors, self._names = tensors, names

    def read(self, key: str, rows: slice) -> np.ndarray:
        return self._tensors.read(self._names[key], rows)


def most_dtype(tensors: Tensors) -> str:
    """The dtype of most of the numbers."""
    sizes: dict[str, int] = {}
    for spec in tensors.specs.values():
        sizes[spec.dtype] = sizes.get(spec.dtype, 0) + math.prod(spec.shape)
    return max(sizes, key=lambda name: sizes[name], default="none")


def plan_of(model: Model, shapes: Any, *, most: int | None = None) -> Plan:
    """What a model's family calls its tensors, and where each goes. `shapes`: its params, abstract.

    Raises InputError where a rule alone asks for more than `most` tensors.
    """
    flat: Any = flatten_dict(shapes, sep="/")
    return Plan.make(TABLES[family_name(model)], {leaf: x.shape for leaf, x in flat.items()}, most=most)


def check(plan: Plan, tensors: Tensors) -> dict[str, np.dtype]:
    """The dtype of each leaf, where every tensor is used exactly once and every leaf filled.

    A leaf whose tensors are stored in several dtypes is of float32, which holds them all.

    Raises InputError that tells the misfits (`misfits_of`), those that differ in a number alone together.
    """
    if tensors.specs and not plan.tensors.keys() & tensors.specs.keys():
        found, wanted = next(iter(tensors.specs)), next(iter(plan.tensors))
        raise InputError(
            f"{tensors.name}: found none of the model's {len(plan.tensors)} tensors, but {found!a:.200} ...; expected "
            f"{wanted!r} ...; name the folder of a model of this architecture"
        )
    if misfits := misfits_of(plan, tensors):
        lacking, others = (_gathered(m for m in misfits if (m.found == "found nothing") == no) for no in (True, False))
        lines = [*lacking[:TOLD], *others[:TOLD]]
        more = len(lacking) + len(others) - len(lines)
        told = "; ".join([*lines, f"and {more} more"] if more else lines)
        raise InputError(f"{len(misfits)} misfits: {told}" if len(misfits) > 1 else told)
    kinds = {leaf: {DTYPES[tensors.specs[part.key].dtype] for part in parts} for leaf, parts in plan.by_leaf.items()}
    return {leaf: next(iter(found)) if len(found) == 1 else DTYPES["float32"] for leaf, found in kinds.items()}


def misfits_of(plan: Plan, tensors: Tensors) -> list[Misfit]:
    """Tensors that lack, that nothing asks for, that have another shape or dtype than the model's; a tied head that is
    stored too, and is not the embedding.
    """
    specs = tensors.specs
    misfits = [
        Misfit(tensors.name, key, "found nothing", f"expected shape {list(shape)}")
        for key, shape in plan.tensors.items()
        if key not in specs
    ]
    for key, spec in specs.items():
        if plan.copies.get(key) in specs:
            if not _equal(tensors, key, plan.copies[key]):
                misfits.append(Misfit(spec.file, key, "found other numbers", f"expected those of {plan.copies[key]}"))
        elif key not in plan.tensors:
            misfits.append(Misfit(spec.file, key, f"found shape {list(spec.shape)}", "expected no such tensor"))
        elif spec.shape != plan.tensors[key]:
            wanted = f"expected {list(plan.tensors[key])}"
            misfits.append(Misfit(spec.file, key, f"found shape {list(spec.shape)}", wanted))
        elif spec.dtype not in DTYPES:
            misfits.append(Misfit(spec.file, key, f"found dtype {spec.dtype}", f"expected {', '.join(DTYPES)}"))
    return misfits


def _equal(tensors: Tensors, left: str, right: str) -> bool:
    """Whether two tensors hold the same numbers; a few rows of each are held at a time."""
    if tensors.specs[left].shape != tensors.specs[right].shape:
        return False

    def numbers(key: str, part: slice) -> np.ndarray:
        return tensors.read(key, part).astype(np.float32)

    rows = max(tensors.specs[left].shape[:1], default=0)
    parts = (slice(start, min(start + ROWS, rows)) for start in range(0, rows, ROWS))  # a file refuses what lies past
    return all(np.array_equal(numbers(left, part), numbers(right, part), equal_nan=True) for part in parts)


def _gathered(misfits: Iterable[Misfit]) -> list[str]:
    """One phrase for each kind of misfit: keys that differ in their first number alone are told together."""
    kinds: dict[tuple[str, ...], list[str]] = {}
    for file, key, found, expected in misfits:
        key = repr(key)[1:-1]  # a damaged file may hold any
        head, number, tail = (*re.split(r"(\d+)", key, maxsplit=1), "", "")[:3]
        kinds.setdefault((file, head, tail, found, expected), []).append(number)
    return [
        f"{file} {head}{numbers[0] if len(numbers) == 1 else '{' + ','.join(numbers) + '}'}{tail}: {found}, {expected}"
        for (file, head, tail, found, expected), numbers in kinds.items()
    ]


def fill(plan: Plan, tensors: Tensors, leaf: str, dtype: np.dtype) -> np.ndarray:
    """One leaf, stacked, in host memory: beside it no more than one tensor is held."""
    out = np.empty(plan.leaves[leaf], dtype)
    for part in plan.by_leaf[leaf]:
        rows = tensors.read(part.key, part.rows)
        out[part.index] = rows.T if part.transposed else rows
    return out


def tensor(plan: Plan, key: str, leaves: Mapping[str, np.ndarray]) -> np.ndarray:
    """One published tensor, contiguous, out of the leaves that its rows went to: the inverse of `fill`."""
    parts = plan.by_tensor[key]
    out = np.empty(plan.tensors[key], leaves[parts[0].leaf].dtype)
    for part in parts:
        one = leaves[part.leaf][part.index]
        out[part.rows] = one.T if part.transposed else one
    return out


def params_from(
    plan: Plan,
    tensors: Tensors,
    *,
    dtype: str | None = None,
    dtypes: Mapping[str, np.dtype] | None = None,
    sharding: Sharded | None = None,
    then: Then | None = None,
) -> Params:
    """A plan's params as `assemble` makes them, in `dtype`, or each leaf as it is stored.

    `dtypes`: what `check` says of them, if it was asked already. Raises InputError, before any is made, for tensors
    that do not fit the plan.
    """
    stored = check(plan, tensors) if dtypes is None else dtypes

    def made(leaf: str) -> np.ndarray:
        return fill(plan, tensors, leaf, stored[leaf] if dtype is None else DTYPES[leaf_dtype(leaf, dtype)])

    return assemble(plan.leaves, made, sharding=sharding, then=then)


def assemble(
    leaves: Iterable[str], made: Callable[[str], np.ndarray], *, sharding: Sharded | None, then: Then | None
) -> Params:
    """Params leaf by leaf: made on the host, put where it is to live, given to `then` there, the host's copy let go."""
    params = {}
    for leaf in leaves:
        there = {leaf: jax.device_put(made(leaf), None if sharding is None else sharding(leaf))}
        params |= there if then is None else then(there)
        jax.block_until_ready(params[leaf])  # so that no two host copies are alive
    return unflatten_dict(params, sep="/")


def from_tensors(
    config: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    *,
    dtype: str | None = None,
    sharding: Sharded | None = None,
    ignore: Iterable[str] = (),
) -> tuple[Model, Params]:
    """A model and its params from what a family publishes: config.json's contents and the named tensors.

    Args:
        config: with `architectures`, as published, or our own `family`.
        tensors: in PyTorch's layout; float32, bfloat16 or float16.
        dtype: of the params (but a router's, which are float32); default each leaf as it is stored.
        sharding: where a leaf, named by its path (`layers/q_proj/kernel`), is to live; default the default device.
        ignore: unknown keys of the config that are left alone (`jaxdiff.load`).

    Raises InputError for a config that is not known in full, and one that lists every misfit between tensors and model.
    """
    model = build(config, ignore=ignore)
    plan = plan_of(model, jax.eval_shape(model.init, jax.random.key(0)), most=len(tensors))
    return model, params_from(plan, InMemory(tensors), dtype=dtype, sharding=sharding)


def to_tensors(model: Model, params: Params) -> dict[str, np.ndarray]:
    """The inverse of `from_tensors`: published names and layouts, dtypes kept; int8 weights are multiplied out."""
    host = {leaf: np.asarray(array) for leaf, array in flatten_dict(plain(params), sep="/").items()}
    plan = plan_of(model, params)
    return {key: tensor(plan, key, host) for key in plan.tensors}
