"""Frozen pytrees: dataclasses whose fields say what is compiled in, what is a traced number, and what is a weight.

All validation of a value that a user sets (a threshold out of range, a name that is not known) happens here, when the
object is made.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Iterator
from typing import Any, TypeVar, dataclass_transform

import jax
import numpy as np

_T = TypeVar("_T")


class InputError(ValueError):
    """The caller's input cannot be used: one line that says what, found, expected and the mend."""


def static(*, default: Any = dataclasses.MISSING) -> Any:
    """A dataclass field that is compiled into the program (shapes, names, callables)."""
    return dataclasses.field(default=default, metadata={"static": True})


def choice(options: Collection[str], *, default: Any = dataclasses.MISSING) -> Any:
    """A `static()` field that holds one of a few names; another one is refused when the object is made."""
    return dataclasses.field(default=default, metadata={"static": True, "options": tuple(options)})


def number(*, default: Any = dataclasses.MISSING, low: float | int, high: float | int, whole: bool = False) -> Any:
    """A dataclass field that is a traced number within [low, high]: one value, or one for each row [B].

    A new value does not recompile, and a [B] vector sweeps B values as the rows of one program.
    """
    return dataclasses.field(default=default, metadata={"low": low, "high": high, "whole": whole})


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field, static, choice, number))
def pytree(cls: type[_T]) -> type[_T]:
    """Frozen dataclass registered as a pytree; `static()` and `choice()` fields are part of the treedef.

    Fields made with `number()` become array leaves, whatever they are given as. A class's own `__post_init__` runs
    after that, for what hangs on several fields.
    """
    own = getattr(cls, "__post_init__", None)

    def __post_init__(self: Any) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if "options" in field.metadata and value not in field.metadata["options"]:
                known = ", ".join(field.metadata["options"])
                raise InputError(f"{field.name}: found {value!r}, expected one of {known}")
            if is_number(field) and value is not None:  # an option that is off is not compiled
                object.__setattr__(self, field.name, _leaf(field.name, value, **field.metadata))
        if own is not None:
            own(self)

    cls.__post_init__ = __post_init__  # type: ignore[attr-defined]
    cls = dataclasses.dataclass(frozen=True)(cls)
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    leaves = [f.name for f in fields if not f.metadata.get("static")]
    statics = [f.name for f in fields if f.metadata.get("static")]

    def flatten(self: Any) -> tuple[list[tuple[Any, Any]], tuple[Any, ...]]:
        children = [(jax.tree_util.GetAttrKey(name), getattr(self, name)) for name in leaves]
        return children, tuple(getattr(self, name) for name in statics)

    def unflatten(values: tuple[Any, ...], children: Iterable[Any]) -> Any:
        self = object.__new__(cls)  # not through __init__: JAX also builds trees of placeholders, which are no arrays
        for name, value in (*zip(leaves, children, strict=True), *zip(statics, values, strict=True)):
            object.__setattr__(self, name, value)
        return self

    jax.tree_util.register_pytree_with_keys(cls, flatten, unflatten)
    return cls


def is_number(field: dataclasses.Field) -> bool:
    """Whether the field was made with `number()`."""
    return "low" in field.metadata


def number_names(tree: Any, name: str | None = None) -> Iterator[str | None]:
    """Of each leaf of a tree of frozen pytrees, in JAX's order: the `number()` field that it is; None for a weight."""
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        for field in dataclasses.fields(tree):
            if not field.metadata.get("static"):
                yield from number_names(getattr(tree, field.name), field.name if is_number(field) else None)
    elif isinstance(tree, tuple | list):
        for part in tree:
            yield from number_names(part, name)
    else:
        yield from (name for _ in jax.tree.leaves(tree))


def named_numbers(tree: Any) -> Iterator[tuple[str, Any]]:
    """The `number()` leaves of a tree by their field's name, those that are off left out."""
    return ((name, leaf) for name, leaf in zip(number_names(tree), jax.tree.leaves(tree), strict=True) if name)


def numbers_of(tree: Any) -> tuple[Any, ...]:
    """The `number()` leaves of a tree, in JAX's order: what may differ from row to row."""
    return tuple(leaf for _, leaf in named_numbers(tree))


def number_paths(tree: Any) -> dict[str, Any]:
    """The `number()` leaves of a tree, in JAX's order, by the way to each: `policy.tau`, `policy.parts.0.tau`."""
    pairs = zip(jax.tree.leaves_with_path(tree), number_names(tree), strict=True)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for (path, leaf), name in pairs if name}


def with_number(tree: Any, path: str, value: Any) -> Any:
    """`tree` with another value at one of its `number_paths`. Raises InputError for one out of its range."""
    name, _, rest = path.partition(".")
    if isinstance(tree, tuple):
        at = int(name)
        return (*tree[:at], with_number(tree[at], rest, value), *tree[at + 1 :])
    return dataclasses.replace(tree, **{name: with_number(getattr(tree, name), rest, value) if rest else value})


def with_numbers(tree: Any, numbers: Iterable[Any]) -> Any:
    """`tree` with other numbers, as many as `numbers_of` gives."""
    leaves, structure = jax.tree.flatten(tree)
    new = iter(numbers)
    pairs = zip(leaves, number_names(tree), strict=True)
    return jax.tree.unflatten(structure, [next(new) if name else leaf for leaf, name in pairs])


def _leaf(name: str, value: Any, *, low: float | int, high: float | int, whole: bool) -> Any:
    """`value` as an array (a Python float would cost one more trace: weak type); checked unless it is traced.

    One of numpy's: what the command line says can be checked where JAX has no device.
    """
    if isinstance(value, jax.core.Tracer):
        return value
    kind = "a whole number" if whole else "a number"
    span = f"of {low:g} or more" if high == np.inf else f"from {low:g} to {high:g}"
    wrong = InputError(f"{name}: found {value}, expected {kind} {span}, or a vector of them")
    try:
        array = np.asarray(value, np.float64)
    except (TypeError, ValueError, OverflowError):
        raise wrong from None
    if array.ndim > 1 or not np.all(np.isfinite(array) & (array >= low) & (array <= high)):
        raise wrong
    if whole and np.any(array % 1):
        raise wrong
    with np.errstate(over="ignore"):
        leaf = array.astype(np.int32 if whole else np.float32)
    if not np.all(np.isfinite(leaf)):  # more than float32 holds
        raise wrong
    return leaf
