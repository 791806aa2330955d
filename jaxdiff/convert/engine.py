"""From published tensors to stacked leaves and back, by a plan; what does not fit is told all at once."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxdiff.convert.families import TABLES
from jaxdiff.convert.table import Part, Plan, Shape
from jaxdiff.models import build, family_name
from jaxdiff.types import InputError, Model, Params

DTYPES = {name: np.dtype(name) for name in ("float32", "float16")} | {"bfloat16": np.dtype(ml_dtypes.bfloat16)}
Put = Callable[[str, np.ndarray], Any]  # a leaf's path and its numbers -> the leaf where it is to live


class Spec(NamedTuple):
    """What a file says of a tensor, before it is read."""

    shape: Shape
    dtype: str
    file: str


@runtime_checkable
class Tensors(Protocol):
    """Published tensors, read one at a time."""

    @property
    def name(self) -> str:
        """Where they lie, for messages."""
        ...

    @property
    def specs(self) -> Mapping[str, Spec]: ...

    def read(self, key: str, rows: slice) -> np.ndarray:
        """Rows of one tensor. Raises InputError where the file does not give them."""
        ...


class InMemory:
    """A mapping of arrays as `Tensors`."""

    name = "tensors"

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        self._arrays = arrays
        self.specs = {key: Spec(array.shape, array.dtype.name, self.name) for key, array in arrays.items()}

    def read(self, key: str, rows: slice) -> np.ndarray:
        return self._arrays[key][rows]


def plan_of(model: Model) -> Plan:
    """What a model's family calls its tensors, and where each goes. Nothing is computed."""
    shapes: Any = flatten_dict(jax.eval_shape(model.init, jax.random.key(0)), sep="/")
    return Plan.make(TABLES[family_name(model)], {leaf: x.shape for leaf, x in shapes.items()})


def check(plan: Plan, tensors: Tensors) -> dict[str, np.dtype]:
    """The dtype of each leaf, where every tensor is used exactly once and every leaf filled.

    Raises InputError that lists all the misfits: tensors that lack, that nothing asks for, that have another shape or
    dtype than the model, or than the rest of their leaf.
    """
    specs = tensors.specs
    misfits = [
        (tensors.name, key, "found nothing", f"expected shape {list(shape)}")
        for key, shape in plan.tensors.items()
        if key not in specs
    ]
    dtypes = {}
    for leaf, parts in plan.by_leaf.items():
        kinds = [specs[part.key].dtype for part in parts if part.key in specs and specs[part.key].dtype in DTYPES]
        if kinds:
            dtypes[leaf] = max(dict.fromkeys(kinds), key=kinds.count)
    for key, spec in specs.items():
        if key not in plan.tensors:
            misfits.append((spec.file, key, f"found shape {list(spec.shape)}", "expected no such tensor"))
        elif spec.shape != plan.tensors[key]:
            misfits.append((spec.file, key, f"found shape {list(spec.shape)}", f"expected {list(plan.tensors[key])}"))
        elif spec.dtype not in DTYPES:
            misfits.append((spec.file, key, f"found dtype {spec.dtype}", f"expected {', '.join(DTYPES)}"))
        elif wrong := [p.leaf for p in plan.by_tensor[key] if dtypes[p.leaf] != spec.dtype]:
            misfits.append((spec.file, key, f"found dtype {spec.dtype}", f"expected {dtypes[wrong[0]]} as its kin"))
    if misfits:
        lines = _gathered(misfits)
        raise InputError(f"{len(misfits)} misfits: {'; '.join(lines)}" if len(misfits) > 1 else lines[0])
    return {leaf: DTYPES[dtype] for leaf, dtype in dtypes.items()}


def _gathered(misfits: Iterable[tuple[str, str, str, str]]) -> list[str]:
    """One phrase for each kind of misfit: keys that differ in their first number alone are told together."""
    kinds: dict[tuple[str, ...], list[str]] = {}
    for file, key, found, expected in misfits:
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


def rows_of(part: Part, leaf: np.ndarray) -> np.ndarray:
    """The rows of a published tensor that a slice of a leaf is: the inverse of what `fill` does to them."""
    one = leaf[part.index]
    return one.T if part.transposed else one


def leaves(
    model: Model, tensors: Tensors, *, dtype: str | None = None, put: Put = lambda _, array: jnp.asarray(array)
) -> Iterator[tuple[str, Any]]:
    """The model's leaves by path, one at a time: assembled on the host, put where they are to live, the copy let go.

    Raises InputError, before any is made, for tensors that do not fit the model.
    """
    plan = plan_of(model)
    stored = check(plan, tensors)
    for leaf in plan.leaves:
        yield leaf, put(leaf, fill(plan, tensors, leaf, stored[leaf] if dtype is None else DTYPES[dtype]))


def from_tensors(
    config: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    *,
    dtype: str | None = None,
    put: Put = lambda _, array: jnp.asarray(array),
) -> tuple[Model, Params]:
    """A model and its params from what a family publishes: config.json's contents and the named tensors.

    Args:
        config: with `architectures`, as published, or our own `family`.
        tensors: PyTorch's layout; float32, bfloat16 or float16.
        dtype: of the params; default each leaf as it is stored.
        put: where a leaf (its path, its numbers) is to live; default the default device.

    Raises InputError that lists every misfit between tensors and model.
    """
    model = build(dict(config))
    return model, unflatten_dict(dict(leaves(model, InMemory(tensors), dtype=dtype, put=put)), sep="/")


def to_tensors(model: Model, params: Params) -> dict[str, np.ndarray]:
    """The inverse of `from_tensors`: published names and layouts, dtypes kept."""
    host = {leaf: np.asarray(array) for leaf, array in flatten_dict(params, sep="/").items()}
    return {
        key: np.concatenate([rows_of(part, host[part.leaf]) for part in parts])
        for key, parts in plan_of(model).by_tensor.items()
    }
