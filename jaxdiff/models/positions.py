"""How a config.json describes rotary positions: its own keys, and transformers' objects, old and new."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from jaxdiff.types import InputError

ROPE = ("rope_scaling", "rope_parameters")  # the objects' keys


def without_rope(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json without transformers' objects of rotary positions, what they say written out as its own keys.

    Their `rope_theta` and `partial_rotary_factor` are the file's; a key of theirs that is not known here becomes an
    unknown key `rope_parameters.KEY`. Raises InputError for another type than "default", for a scaling factor, and
    where two places of the file contradict each other.
    """
    flat, given = {key: value for key, value in raw.items() if key not in ROPE}, {}
    for place, rope in _rope_objects(raw):
        for key, value in rope.items():
            name, wanted = f"{place}.{key}", {"rope_type": "default", "type": "default", "factor": 1.0}.get(key)
            if value is None:
                continue
            if key in ("rope_theta", "partial_rotary_factor"):
                if flat.get(key) not in (None, value):
                    raise InputError(
                        f"config.json {name}: found {value!r} beside {given.get(key, key)} {flat[key]!r}, expected the "
                        "same; remove the wrong one"
                    )
                flat[key] = value
                given.setdefault(key, name)
            elif wanted is None:
                flat[name] = value
            elif value != wanted or isinstance(value, bool):
                raise InputError(f"config.json {name}: found {value!r}, expected {wanted!r}")
    return flat


def _rope_objects(raw: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Where rotary positions are described, and how; an object may hold others, one for each type of layer."""
    for place in ROPE:
        rope = raw.get(place)
        if not rope:
            continue
        if not isinstance(rope, Mapping):
            raise InputError(f"config.json {place}: found {rope!r}, expected an object")
        nested = {key: value for key, value in rope.items() if isinstance(value, Mapping)}
        yield place, {key: value for key, value in rope.items() if key not in nested}
        yield from ((f"{place}.{key}", value) for key, value in nested.items())
