"""Which tokens the chosen positions get together: one file per fill. `parse` reads the command line's `NAME:k=v`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from jaxdiff.fills.adjust import Adjust
from jaxdiff.fills.head import Head
from jaxdiff.fills.parallel import Parallel
from jaxdiff.fills.recap import Recap
from jaxdiff.protocols import Fill
from jaxdiff.pytree import InputError
from jaxdiff.registry import Registry, arguments_of, parse_arguments

DRAFTED = {"adjust": Adjust, "head": Head}  # those whose weights lie in a model's folder
FILLS = Registry("fill", {"parallel": Parallel, "recap": Recap} | DRAFTED)


def parse(text: str, *, drafted: Callable[[str, str | None], Fill] | None = None) -> Fill:
    """The fill that `text` names.

        parallel      recap:slices=3      adjust      adjust:name=mine,k=4,stop=1.5      head:k=4

    `drafted` finds one with a drafter by the fill's name and the drafter's, which may be left to its default: it
    belongs to a model.

    Raises InputError for a name or an argument that is not known (with those that are), or a value out of range.
    """
    name, _, rest = text.strip().partition(":")
    if name not in DRAFTED:
        return FILLS.parse(text)
    label, known = f"fill {name}", {"name": {"static": True}, **arguments_of(DRAFTED[name])}
    values = parse_arguments(label, known, [item for item in rest.split(",") if item])
    if drafted is None:
        raise InputError(f"{label}: found no model, expected one whose drafters it names")
    found: Any = drafted(name, values.pop("name", None))
    try:
        return dataclasses.replace(found, **values)
    except InputError as error:
        raise InputError(f"{label} {error}") from None


__all__ = ["FILLS", "Adjust", "Head", "Parallel", "Recap", "parse"]
