"""A regular expression, or a JSON schema, as an automaton over bytes: what outlines-core makes of it."""

from __future__ import annotations

import functools
import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from jaxdiff.files import first_line, parse_json, read_object
from jaxdiff.pytree import InputError, pytree, static

KINDS = ("regex", "json")
BYTES = 256
# Of JSON Schema: where parts stand that are schemas themselves, and all that is heeded or says nothing of a text.
BRANCHES = ("items", "prefixItems", "anyOf", "oneOf", "allOf", "additionalProperties")
NAMED = ("properties", "$defs", "definitions")
HEEDED = frozenset(
    {"type", "required", "enum", "const", "$ref", "minLength", "maxLength", "pattern", "format", "minItems", "maxItems"}
    | {"title", "description", "default", "examples", "$schema", "$id", "$comment", *BRANCHES, *NAMED}
)
# Stands behind every text while outlines-core makes the automaton: it leaves out steps from a state that accepts to one
# that does not, as in (ab)*, so no state but the last may accept. A code point that is no character.
LAST = "\U0010ffff"


@pytree
class Letters:
    """An automaton over bytes. State 0 is one from which nothing matches.

    Attributes:
        next: the state after a byte.
        accepts: states in which what was read matches.
        start: the state before the first byte.
    """

    next: Int[np.ndarray, "n 256"]
    accepts: Bool[np.ndarray, " n"]
    start: int = static()


def pattern_of(text: str) -> str:
    """The regular expression that `regex:PATTERN`, or `json:` with a schema or the file of one, stands for.

    Raises InputError for another kind, a file that holds no JSON object, and as `schema_pattern`.
    """
    kind, colon, rest = text.partition(":")
    if kind not in KINDS or not colon or not rest:
        raise InputError(f"constraint: found {text!r:.60}, expected regex:PATTERN, or json: and a schema or its file")
    if kind == "regex":
        return rest
    return schema_pattern(rest if rest.lstrip().startswith("{") else read_object(Path(rest)))


def schema_pattern(schema: dict[str, Any] | str) -> str:
    """The regular expression of the JSON texts that a schema (an object, or its text) describes.

    outlines-core (`json_schema.build_regex_from_schema`) says what they may be and how much white space there may be
    (one blank). A `pattern` is taken as it stands: one that matches a quotation mark or a backslash gives texts that
    are no JSON.

    Raises InputError for what is no JSON, a schema that it does not know, a keyword that it would leave unheeded
    (bounds of numbers, `uniqueItems`, several parts of `allOf` ...), and one that refers to itself.
    """
    check_installed()
    from outlines_core.json_schema import build_regex_from_schema

    if isinstance(schema, str):
        try:
            schema = parse_json(schema)
        except (ValueError, RecursionError) as error:
            raise InputError(f"constraint: the schema is not JSON ({first_line(error)})") from error
    if not isinstance(schema, dict):
        raise InputError(f"constraint: found a schema that is {type(schema).__name__}, expected a JSON object")
    if (unheeded := _unheeded(schema)) is not None:
        raise InputError(
            f"constraint: found {unheeded} in the schema, which outlines-core does not heed; leave it out, and check "
            "the answers for it"
        )
    if _recurses(schema):
        raise InputError(
            "constraint: found a schema that refers to itself, expected one of bounded depth; write it out"
        )
    try:
        return f"({build_regex_from_schema(json.dumps(schema))})"
    except (ValueError, TypeError) as error:
        raise InputError(
            f"constraint: found a schema that outlines-core makes no regular expression of ({first_line(error)}); "
            "change it, or give regex:"
        ) from error


def _unheeded(schema: Any) -> str | None:
    """The first keyword of a schema that no regular expression is made of."""
    if not isinstance(schema, dict):
        return None
    for name in schema:
        if name not in HEEDED:
            return name
    if len(schema.get("allOf", ())) > 1:
        return "allOf of several parts"
    parts = [part for name in BRANCHES for part in _listed(schema.get(name))]
    parts += [part for name in NAMED if isinstance(schema.get(name), dict) for part in schema[name].values()]
    return next(filter(None, map(_unheeded, parts)), None)


def _listed(parts: Any) -> list[Any]:
    return parts if isinstance(parts, list) else [parts]


def _recurses(schema: dict[str, Any]) -> bool:
    """Whether a reference within the schema leads back to itself."""

    def within(part: Any, open_: tuple[str, ...]) -> bool:
        if isinstance(part, list):
            return any(within(each, open_) for each in part)
        if not isinstance(part, dict):
            return False
        there = part.get("$ref")
        if isinstance(there, str) and there.startswith("#"):
            if there in open_:
                return True
            target: Any = schema
            for name in there.split("/")[1:]:
                target = target.get(name) if isinstance(target, dict) else None
            if within(target, (*open_, there)):
                return True
        # A definition counts where it is referred to.
        return any(within(each, open_) for name, each in part.items() if name not in ("$defs", "definitions"))

    return within(schema, ("#",))


@functools.lru_cache(maxsize=8)
def letters_of(pattern: str) -> Letters:
    """The automaton of the texts that match a regular expression as a whole, in UTF-8.

    The syntax is that of Rust's regex crate (classes such as `.` are of Unicode), without anchors, look-around,
    references and word boundaries: the whole text must match in any case.

    Raises InputError where outlines-core is not installed, and for what is no such expression.
    """
    check_installed()
    from outlines_core import Index, Vocabulary

    letters = Vocabulary(BYTES, {bytes([byte]): [byte] for byte in range(BYTES)})
    try:
        Index(pattern, letters)  # alone: a parenthesis too many would close the group around it
        index = Index(f"(?:{pattern}){LAST}", letters)
    except ValueError as error:
        raise InputError(
            f"constraint: found {pattern!r:.60}, which outlines-core reads as no regular expression "
            f"({first_line(error)}); leave out ^, $, \\b, look-around and references"
        ) from error
    found = index.get_transitions()
    names = sorted({index.get_initial_state(), *found, *index.get_final_states()})
    number = {name: place for place, name in enumerate(names, start=1)}
    table = np.zeros((len(names) + 1, BYTES), np.int32)
    for name, steps in found.items():
        for byte, after in steps.items():
            if byte < BYTES:
                table[number[name], byte] = number[after]
    over = np.zeros(len(names) + 1, bool)
    over[[number[name] for name in index.get_final_states()]] = True
    after = np.arange(len(names) + 1)
    for byte in LAST.encode():
        after = table[after, byte]
    accepts = over[after]
    return Letters(table, accepts, number[index.get_initial_state()])


def check_installed() -> None:
    """Raises InputError where outlines-core is not installed."""
    if importlib.util.find_spec("outlines_core") is None:
        raise InputError("constraint: needs outlines-core, which is not installed; pip install 'jaxdiff[constraints]'")
