"""A published folder's weights, opened: which tensors there are, under the family's names, and what was done for that.

files -> float8 multiplied out (`fp8`) -> names as the family's (`names`) -> buffers left out
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxdiff.convert import fp8, kinds, names, published
from jaxdiff.convert.engine import DTYPES, Spec, Tensors, most_dtype
from jaxdiff.convert.table import Plan
from jaxdiff.models.config import Config
from jaxdiff.types import InputError


@dataclasses.dataclass(frozen=True)
class Weights:
    """A folder's tensors, none of them read yet.

    Attributes:
        tensors: as a model reads them.
        held: what its files hold, under their own names.
        passed_over: names of tensors that are not read: buffers, scales of activations.
        prefix: what was taken from all names, as `names.unwrapped` says it.
        notes: what was done for it, and where an index is not as its shards are; a line each.
    """

    tensors: Tensors
    held: Mapping[str, Spec]
    passed_over: tuple[str, ...] = ()
    prefix: str = ""
    notes: tuple[str, ...] = ()

    @property
    def computed_in(self) -> str:
        """The dtype of most of the numbers; float32 for float16, whose numbers it holds exactly.

        Raises InputError where that is none that a model is read from.
        """
        most = most_dtype(self.tensors)
        if most not in DTYPES:
            raise InputError(f"{self.tensors.name}: found tensors of dtype {most}, expected {', '.join(DTYPES)}")
        return "float32" if most == "float16" else most

    @property
    def files(self) -> list[str]:
        return sorted({spec.file for spec in self.held.values()})

    def fitted(self, plan: Plan, config: Config) -> Weights:
        """Under the names of a plan, without what follows from the config. Raises InputError where it does not."""
        tensors, prefix = names.unwrapped(self.tensors, plan)
        tensors, buffers = names.without_frequencies(tensors, config)
        notes = [f"names of tensors: {names.told(prefix)}"] if prefix else []
        if buffers:
            notes.append(f"rotary_emb.inv_freq ({len(buffers)} buffers): what config.json says, and not read")
        passed = (*self.passed_over, *buffers)
        return Weights(tensors, self.held, passed, prefix, (*self.notes, *notes))


def opened(folder: Path, config: Mapping[str, Any], beyond: Mapping[str, published.Open] | None = None) -> Weights:
    """The weights of a folder with this config.json; `beyond` as of `published.Files`.

    Raises InputError for damaged, packed or missing ones.
    """
    files = published.Files(folder, beyond=beyond)
    kinds.check_names(folder, files.specs)
    notes, given = list(files.notes), config.get(kinds.QUANTISED)
    stored = config.get("torch_dtype") or config.get("dtype")
    named = stored.removeprefix("torch.") if isinstance(stored, str) else None
    tensors: Tensors = files
    passed: tuple[str, ...] = ()
    if any(fp8.SCALES.match(key) or spec.dtype == published.FLOAT8.name for key, spec in files.specs.items()):
        tensors = fp8.Dequantised(files, named if named in DTYPES else "bfloat16", fp8.block_of(given))
        notes.append(tensors.note)
        passed = tensors.unread
    elif given:
        notes.append(f"config.json {kinds.QUANTISED} says that weights are quantised, the tensors are not: they count")
    if named is not None and (most := most_dtype(tensors)) != named:
        notes.append(f"config.json names the dtype {named}, the tensors are {most}: they count")
    return Weights(tensors, files.specs, passed, notes=tuple(notes))
