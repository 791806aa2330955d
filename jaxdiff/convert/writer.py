"""orbax params written a leaf at a time, so that a model larger than memory can be converted.

Apart from `stream`, which reads them: orbax takes long to import.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax.traverse_util import unflatten_dict
from orbax.checkpoint import type_handlers

from jaxdiff.convert.table import Shape
from jaxdiff.files import without_patterns

# What the writer buffers beside a leaf: the chunks it is compressing, and data files until they have this size.
CHUNK_BYTES, DATA_FILE_BYTES = 64 << 20, 256 << 20


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


def save(path: Path, params: Any) -> None:
    """Write arrays in memory as the params of a folder."""
    with without_patterns(path.parent) as there, ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(there / path.name, params)
    mark = path / "commit_success.txt"
    if mark.is_file():  # on some file systems; it names a folder of this machine that is gone a moment later
        mark.write_text("The checkpoint was written whole.\n", encoding="utf-8")
