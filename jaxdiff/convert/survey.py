"""What can be told of a model folder, whether it can be loaded or not."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jaxdiff.convert import published
from jaxdiff.convert.description import describe
from jaxdiff.convert.facts import keys_of, model_facts, stored
from jaxdiff.convert.kinds import QUANTISED
from jaxdiff.files import read_object
from jaxdiff.models import FAMILIES, OWN, family_of, model_of
from jaxdiff.parallel.mesh import abstract_mesh
from jaxdiff.types import InputError


def survey(
    folder: Path,
    *,
    ignore: Iterable[str] = (),
    adapter: Path | None = None,
    mesh: str = "1x1",
    beyond: Mapping[str, published.Open] | None = None,
) -> dict[str, Any]:
    """The facts of a folder, whether it can be loaded or not: `faults` says why not, in a line each.

    Raises InputError for a folder without a config.json that can be read, and for a mesh that the model does not spread
    over.
    """
    abstract_mesh(mesh)  # no folder mends a mesh that is none
    try:
        described = describe(folder, ignore=ignore, adapter=adapter, beyond=beyond)
    except InputError as error:
        if not (folder / published.CONFIG).is_file():
            raise
        return _as_far_as_read(folder, mesh, beyond) | {"faults": [str(error)]}
    return described.facts(mesh=mesh)


def _as_far_as_read(folder: Path, mesh: str, beyond: Mapping[str, published.Open] | None) -> dict[str, Any]:
    """What can be told of a folder that is not understood: the keys of its config.json, the model that it describes,
    and its files' tensors.

    What cannot be told is left out: the fault that keeps it from being told is the one that is shown.
    """
    config = read_object(folder / published.CONFIG)
    layout = "published" if published.is_published(folder, config) else "ours"
    facts: dict[str, Any] = {"path": str(folder), "layout": layout, "warnings": []}
    with contextlib.suppress(InputError):
        facts["family"] = family_of(config)
        facts["keys"] = keys_of((FAMILIES | OWN)[facts["family"]][1], config)
    with contextlib.suppress(InputError):
        plain = published.with_ids(config, folder)[0] if layout == "published" else config
        stored_in = {} if plain.get("dtype") in ("float32", "bfloat16") else {"dtype": "bfloat16"}
        model, shapes = model_of({k: v for k, v in plain.items() if k != QUANTISED} | stored_in, folder)
        facts |= model_facts(model, shapes, mesh)
    if layout == "published":
        with contextlib.suppress(InputError):
            files = published.Files(folder, beyond=beyond)
            names = sorted({spec.file for spec in files.specs.values()})
            facts |= stored(files.specs) | {"files": names, "warnings": files.notes}
    return facts
