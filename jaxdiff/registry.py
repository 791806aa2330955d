"""From a command line's text to an instance: `name:k=v,...`, once for policies, fills, caches and stoppers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxdiff.pytree import InputError, is_number


@dataclasses.dataclass(frozen=True)
class Modes:
    """Several classes under one name: the argument `key` says which, `default` where it is not given."""

    key: str
    default: str
    classes: Mapping[str, type]


@dataclasses.dataclass(frozen=True)
class Keyed:
    """Several classes under one name, each with an argument of its own that names it: `remdm:cap=0.02`."""

    default: str
    classes: Mapping[str, type]


@dataclasses.dataclass(frozen=True)
class Registry:
    """The instances of one abstraction by name.

    Attributes:
        what: of which abstraction, for messages: "policy", "cache" ...
        entries: a frozen pytree class for each name, or `Modes`, or `Keyed`.
        more: names beside the entries that a caller reads itself, for messages alone.
    """

    what: str
    entries: Mapping[str, type | Modes | Keyed]
    more: tuple[str, ...] = ()

    def parse(self, text: str, **defaults: Any) -> Any:
        """The instance that `name:k=v,...` describes.

        `defaults` fill fields that the class has and the text does not set; None is no default.

        Raises InputError for a name, an argument or a value that is not known, with those that are.
        """
        name, _, rest = text.strip().partition(":")
        cls, given, mode = self.class_of(name, rest)
        label = f"{self.what} {name}"
        known = arguments_of(cls)
        values = {k: v for k, v in defaults.items() if k in known and v is not None}
        values |= parse_arguments(label, known, given, mode)
        try:
            return cls(**values)
        except InputError as error:
            raise InputError(f"{label} {error}") from None

    def class_of(self, name: str, rest: str = "") -> tuple[type, list[str], tuple[str, ...]]:
        """The class of a name, the arguments left for it, and further arguments that choose among its modes."""
        if name not in self.entries:
            known = ", ".join((*self.entries, *self.more))
            raise InputError(f"{self.what}: found {name!r}, expected one of {known}")
        entry, items = self.entries[name], [item for item in rest.split(",") if item]
        keys = [item.partition("=")[0] for item in items]
        if isinstance(entry, Keyed):
            chosen = list(dict.fromkeys(key for key in keys if key in entry.classes))
            if len(chosen) > 1:
                raise InputError(f"{self.what} {name}: found {' and '.join(chosen)}, expected one of the two")
            (mode,) = chosen or [entry.default]
            others = tuple(key for key in entry.classes if key != mode)
            return entry.classes[mode], [item for item in items if item != mode], others
        if not isinstance(entry, Modes):
            return entry, items, ()
        chosen = [item.partition("=")[2] for key, item in zip(keys, items, strict=True) if key == entry.key]
        if len(chosen) > 1:
            raise InputError(f"{self.what} {name}: found {entry.key} twice, expected it once")
        mode = chosen[0] if chosen else entry.default
        if mode not in entry.classes:
            known = ", ".join(entry.classes)
            raise InputError(f"{self.what} {name} {entry.key}: found {mode!r}, expected one of {known}")
        return entry.classes[mode], [i for k, i in zip(keys, items, strict=True) if k != entry.key], (entry.key,)

    def classes(self) -> dict[str, type]:
        """Every class with the text that names it, such as `eotp:way=safe`."""
        found: dict[str, type] = {}
        for name, entry in self.entries.items():
            if isinstance(entry, Modes):
                found |= {f"{name}:{entry.key}={mode}": cls for mode, cls in entry.classes.items()}
            elif isinstance(entry, Keyed):
                found |= {f"{name}:{mode}": cls for mode, cls in entry.classes.items()}
            else:
                found[name] = entry
        return found

    def name_of(self, instance: Any) -> str:
        """The name of an instance's class, without its mode; the class's own name where it is not in the table."""
        known = (text.partition(":")[0] for text, cls in self.classes().items() if type(instance) is cls)
        return next(known, type(instance).__name__)


def arguments_of(cls: type) -> dict[str, Any]:
    """The `choice()` and `number()` fields of a class with their metadata: what a text can set."""
    return {f.name: f.metadata for f in dataclasses.fields(cls) if is_number(f) or "options" in f.metadata}


def parse_arguments(label: str, known: Mapping[str, Any], items: list[str], more: tuple[str, ...] = ()) -> dict:
    """The values that `k=v` items give to some of the known fields.

    Raises InputError, with the fields that there are (and those in `more`), for another one, for one that is given
    twice, and for a number that is none.
    """
    values: dict[str, Any] = {}
    for item in items:
        name, equals, value = item.partition("=")
        if name not in known or not equals:
            there = ", ".join(f"{k}=" for k in (*known, *more)) or "none"
            raise InputError(f"{label}: found argument {item!r}, expected {there}")
        if name in values:
            raise InputError(f"{label}: found {name} twice, expected it once")
        kind = known[name]
        values[name] = value if kind.get("static") else parse_number(f"{label} {name}", value, whole=kind["whole"])
    return values


def parse_number(what: str, text: str, *, whole: bool) -> float | int:
    """The number that a command line gives. Raises InputError for another text."""
    try:
        return int(text) if whole else float(text)
    except ValueError:
        kind = "a whole number" if whole else "a number"
        raise InputError(f"{what}: found {text!r}, expected {kind}") from None
