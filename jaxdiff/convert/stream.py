"""orbax params written and read a leaf at a time, so that a model larger than memory can be converted."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax.traverse_util import flatten_dict, unflatten_dict
from orbax.checkpoint import type_handlers

from jaxdiff.convert.table import Shape
from jaxdiff.files import refusing, without_patterns
from jaxdiff.types import InputError

# What the writer buffers beside a leaf: the chunks it is compressing, and data files until they have this size.
CHUNK_BYTES, DATA_FILE_BYTES = 64 << 20, 256 << 20
AGAIN = "restore or convert it again"  # what helps where params cannot be read


@dataclasses.dataclass(frozen=True)
class Pending:
    """A leaf that is made when it is written."""

    shape: Shape
    dtype: np.dtype
    make: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class _PendingHandler(type_handlers.NumpyHandler):
    """Writes pending leaves as arrays, one after the other; each is let go before the next is made."""

    def __init__(self) -> None:
        super().__init__(deepcopy_host_arrays=False)

    async def serialize(self, values: Sequence[Any], infos: Sequence[Any], args: Sequence[Any] | None = None) -> Any:
        for value, info, arg in zip(values, infos, args or [ocp.SaveArgs()] * len(values), strict=True):
            for written in await super().serialize([value.make()], [info], [arg]):
                written.result()
        return []


def write(path: Path, leaves: Mapping[str, Pending]) -> None:
    """Write leaves by path as the params of a folder; no more than one is in memory at a time."""
    tree = unflatten_dict(dict(leaves), sep="/")
    arrays = (jax.Array, type_handlers.ArrayHandler())  # none is written, but orbax warns where it cannot
    registry = type_handlers.create_type_handler_registry((Pending, _PendingHandler()), arrays)
    arguments = ocp.args.PyTreeSave(
        tree,
        save_args=jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES), tree),
        ocdbt_target_data_file_size=DATA_FILE_BYTES,
    )
    handler = ocp.PyTreeCheckpointHandler(type_handler_registry=registry)
    with without_patterns(path.parent) as there, ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(there / path.name, args=arguments)


def stored(path: Path, shapes: Any) -> dict[str, np.dtype]:
    """The dtype of each leaf of a folder's params. Raises InputError where their shapes are not `shapes`, a model's."""
    unread = refusing(f"{path}: cannot be read", AGAIN)
    with unread, without_patterns(path) as there, ocp.StandardCheckpointer() as checkpointer:
        metadata: Any = checkpointer.metadata(there)
        tree: Any = flatten_dict(metadata.item_metadata.tree, sep="/")
    flat: Any = flatten_dict(shapes, sep="/")
    expected = {leaf: tuple(x.shape) for leaf, x in flat.items()}
    for leaf in sorted(tree | expected):
        shape = tuple(tree[leaf].shape) if leaf in tree else "nothing"
        if shape != expected.get(leaf):
            raise InputError(f"{path} {leaf}: found {shape}, expected {expected.get(leaf, 'no such leaf')}")
    return {leaf: np.dtype(x.dtype) for leaf, x in tree.items()}


def read(path: Path, leaves: Iterable[str]) -> dict[str, np.ndarray]:
    """Some leaves of a folder's params, in host memory, and no others. Raises InputError for a damaged folder."""
    wanted: Any = unflatten_dict(dict.fromkeys(leaves, 0), sep="/")
    arguments = ocp.args.PyTreeRestore(
        wanted,
        restore_args=jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted),
        partial_restore=True,
    )
    unread, handler = refusing(f"{path}: cannot be read", AGAIN), ocp.PyTreeCheckpointHandler()
    with unread, without_patterns(path) as there, ocp.Checkpointer(handler) as checkpointer:
        tree: Any = flatten_dict(checkpointer.restore(there, args=arguments), sep="/")
    return tree
