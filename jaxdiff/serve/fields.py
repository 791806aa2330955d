"""The fields of a JSON object that a client sent: taken one by one, each checked, and what nobody takes is refused."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from jaxdiff.types import InputError

MOST_STOPS = 4
LONGEST = 1e9  # seconds


class Given:
    """The fields of a JSON object, taken one by one, so that what is left is what nobody knows."""

    def __init__(self, fields: dict[str, Any]) -> None:
        self.fields = fields
        self.left = set(fields)

    def take(self, name: str, check: Callable[[str, Any], Any], default: Any) -> Any:
        """A field's value, if it passes the check; `default` where it is not given."""
        if name not in self.fields:
            return default
        self.left.discard(name)
        return check(name, self.fields[name])

    def finish(self, ignored: Collection[str] = (), *, of: str = "") -> None:
        """Raises InputError for a field that was not taken, but for the `ignored`."""
        if unknown := sorted(self.left.difference(ignored)):
            raise InputError(f"{of}{unknown[0]}: found a field that is not known; take it out")


def kind_of(value: Any) -> str:
    return "null" if value is None else type(value).__name__


def _wrong(name: str, value: Any, expected: str) -> InputError:
    return InputError(f"{name}: found {value!r:.80}, expected {expected}")


def anything(name: str, value: Any) -> Any:
    return value


def a_text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise _wrong(name, value, "a text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise _wrong(name, value, "text that UTF-8 can hold") from None
    return value


def some_texts(name: str, value: Any) -> list[str]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or len(texts) > MOST_STOPS:
        raise _wrong(name, value, f"a text, or a list of at most {MOST_STOPS}")
    return texts


def a_truth(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise _wrong(name, value, "true or false")
    return value


def only_zero(name: str, value: Any) -> bool:
    if type(value) is not int or value != 0:
        raise _wrong(name, value, "0: the log-probability of the token that was written is kept, no other's")
    return True


def an_object(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _wrong(name, value, "an object")
    return value


def a_number(name: str, value: Any) -> float | int:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _wrong(name, value, "a number")
    return value


def some_seconds(name: str, value: Any) -> float:
    if not 0 < a_number(name, value) < LONGEST:
        raise _wrong(name, value, f"seconds, above 0 and below {LONGEST:g}")
    return float(value)


def a_whole(low: int, high: int | None = None) -> Callable[[str, Any], int]:
    span = f"a whole number of {low} or more" if high is None else f"a whole number from {low} to {high}"

    def check(name: str, value: Any) -> int:
        if type(value) is not int or value < low or (high is not None and value > high):
            raise _wrong(name, value, span)
        return value

    return check
