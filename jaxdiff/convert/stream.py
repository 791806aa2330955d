"""What orbax wrote (`writer`) read by tensorstore, as orbax would: zarr arrays, by the names of their leaves, in one
OCDBT store.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tensorstore as ts

from jaxdiff.convert.engine import Spec
from jaxdiff.convert.table import Plan
from jaxdiff.files import refusing, without_patterns
from jaxdiff.types import InputError, Params

AGAIN = "restore or convert it again"  # what helps where params cannot be read
open_array, open_store = ts.open, ts.KvStore.open  # by names that are not those of opening a text
DRIVERS = {".zarray": "zarr", "zarr.json": "zarr3"}  # by the file that describes an array


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[dict[str, ts.TensorStore]]:
    """The arrays of a folder's params, by path (`layers/q_proj/kernel`); of their numbers none is read yet.

    Raises InputError for whatever goes wrong with them.
    """
    if not path.is_dir():
        raise InputError(f"{path}: missing; the folder holds a config but no parameters")
    with refusing(f"{path}: cannot be read", AGAIN), without_patterns(path) as there:
        store: dict[str, Any] = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{there}/"}}
        files = [key.decode().rpartition("/") for key in open_store(store).result().list().result()]
        opening = {
            name.replace(".", "/"): open_array({"driver": DRIVERS[file], "kvstore": store | {"path": f"{name}/"}})
            for name, _, file in files
            if file in DRIVERS
        }
        yield {leaf: array.result() for leaf, array in opening.items()}


def stored(path: Path, shapes: Any) -> dict[str, np.dtype]:
    """The dtype of each leaf of a folder's params. Raises InputError where their shapes are not `shapes`, a model's."""
    with _opened(path) as arrays:
        expected = {leaf: tuple(x.shape) for leaf, x in _by_path(shapes).items()}
        for leaf in sorted(arrays | expected):
            shape = tuple(arrays[leaf].shape) if leaf in arrays else "nothing"
            if shape != expected.get(leaf):
                raise InputError(f"{path} {leaf}: found {shape}, expected {expected.get(leaf, 'no such leaf')}")
        return {leaf: array.dtype.numpy_dtype for leaf, array in arrays.items()}


def read(path: Path, leaves: Iterable[str]) -> dict[str, np.ndarray]:
    """Some leaves of a folder's params, in host memory, and no others. Raises InputError for a damaged folder."""
    with _opened(path) as arrays:
        return {leaf: arrays[leaf].read().result() for leaf in leaves}


class Leaves:
    """Params as their family would publish them (`jaxdiff.convert.engine.Tensors`).

    The leaves that the last tensor was cut from are held: tensors that are asked for in the order of the plan read each
    leaf once.

    `name`: where they lie, for messages; `read`: gives some of them by path, in host memory.
    """

    def __init__(
        self,
        name: str,
        plan: Plan,
        dtypes: Mapping[str, np.dtype],
        read: Callable[[Iterable[str]], Mapping[str, np.ndarray]],
    ) -> None:
        self.name = name
        self.specs = {
            key: Spec(shape, dtypes[plan.by_tensor[key][0].leaf].name, name) for key, shape in plan.tensors.items()
        }
        self._read, self._plan = read, plan
        self._held: Mapping[str, np.ndarray] = {}

    def read(self, key: str, rows: slice) -> np.ndarray:
        start, stop, _ = rows.indices(self.specs[key].shape[0])
        parts = [part for part in self._plan.by_tensor[key] if part.rows.start < stop and part.rows.stop > start]
        wanted = {part.leaf for part in parts}
        if wanted != self._held.keys():
            self._held = {}  # let go before the next is read
            self._held = self._read(wanted)
        cut = []
        for part in parts:
            one = self._held[part.leaf][part.index]
            one = one.T if part.transposed else one
            cut.append(one[max(start - part.rows.start, 0) : stop - part.rows.start])
        return np.ascontiguousarray(cut[0] if len(cut) == 1 else np.concatenate(cut))


def restore(path: Path, target: Params, laid: Params | None = None) -> Params:
    """All arrays of a folder, of the shapes and dtypes `target`, on the device, a leaf at a time.

    `laid`: shapes with their shardings: each device reads its own part, padded with zeros where a shape is larger.

    Raises InputError for a folder that is damaged or holds others.
    """
    with _opened(path) as arrays:
        wanted = _by_path(target)
        for leaf in sorted(arrays | wanted):
            found = tuple(arrays[leaf].shape) if leaf in arrays else "nothing"
            said = tuple(wanted[leaf].shape) if leaf in wanted else "nothing"
            if found != said:
                raise ValueError(f"{leaf}: {found}, config.json says {said}")
        there = jax.tree.leaves(target if laid is None else laid)
        made = [_placed(arrays[leaf], where) for leaf, where in zip(wanted, there, strict=True)]
        return jax.tree.unflatten(jax.tree.structure(target), made)


def _by_path(tree: Any) -> dict[str, Any]:
    """The leaves of a tree, in JAX's order."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in jax.tree.leaves_with_path(tree)
    }


def _placed(array: ts.TensorStore, there: jax.ShapeDtypeStruct) -> jax.Array:
    def part(index: Any) -> np.ndarray:
        spans = [span.indices(size) for span, size in zip(index, there.shape, strict=True)]
        inside = [
            (min(first, size), min(last, size)) for (first, last, _), size in zip(spans, array.shape, strict=True)
        ]
        found = array[tuple(slice(*ends) for ends in inside)].read().result().astype(there.dtype, copy=False)
        missing = [last - first - size for (first, last, _), size in zip(spans, found.shape, strict=True)]
        return np.pad(found, [(0, size) for size in missing]) if any(missing) else found

    if there.sharding is None:
        return jax.device_put(part(tuple(map(slice, there.shape))))
    return jax.make_array_from_callback(there.shape, there.sharding, part)
