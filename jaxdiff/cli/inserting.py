"""What the command line says to an insertion model: how it inserts, and texts with holes; and what it cannot say."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import chain
from typing import Any

from jaxdiff.checkpoint import Checkpoint
from jaxdiff.cli.options import Decoding
from jaxdiff.convert.prompts import Tokenizer
from jaxdiff.decode import Sampling
from jaxdiff.insertion import WAYS, One, Way
from jaxdiff.insertion.api import check_lengths, check_parts, gaps_of
from jaxdiff.protocols import Model, is_insertion
from jaxdiff.types import InputError

MASKS = (  # fields of `Decoding` that say how masks are filled
    *("policy", "fill", "cache", "stop", "stop_string", "constraint", "steps", "block_length"),
    *("cfg_scale", "forbid_eos", "defer_eos", "length", "end_think", "guide", "draft"),
)


def check(decoding: Decoding, model: Model) -> None:
    """Raises InputError for what says how masks are filled, with a model that inserts; and the other way round."""
    if not is_insertion(model):
        if decoding.insert is not None:
            raise InputError(
                f"insert: found {decoding.insert} with a model that fills masks ({type(model).__name__}), expected a "
                "policy; leave it out"
            )
        return
    refuse_set(
        decoding,
        MASKS,
        ("none",),
        "with an insertion model, which fills no masks, expected --insert, which says how it inserts; leave it out",
    )
    if decoding.mesh != "1x1":
        raise InputError(f"mesh: found {decoding.mesh} with an insertion model, expected 1x1; leave it out")
    check_lengths(model, 1, decoding.gen_length)


def refuse_set(decoding: Decoding, names: Sequence[str], stops: Sequence[str], why: str) -> None:
    """Raises InputError for the first of these fields that is set. `stops`: what `stop` may be all the same."""
    defaults = {field.name: (field.default,) for field in dataclasses.fields(decoding)} | {"stop": (None, *stops)}
    for name in names:
        if (found := getattr(decoding, name)) not in defaults[name]:
            shown = found[0] if isinstance(found, tuple) else "it" if found is True else found
            raise InputError(f"{name.replace('_', '-')}: found {shown} {why}")


def way(decoding: Decoding) -> Way:
    return One() if decoding.insert is None else WAYS.parse(decoding.insert)


def sampling(decoding: Decoding) -> Sampling:
    return Sampling(temperature=decoding.temperature, top_p=decoding.top_p, top_k=decoding.top_k)


def parts_of(tokenizer: Tokenizer | None, given: Any, *, special: bool) -> tuple[list[int], tuple[int, ...]]:
    """The ids of a row's `insert`, and the gaps between its parts: texts as they stand, without a chat template, or
    lists of ids.

    Raises InputError for what is no list of two parts or more, and for texts without a tokenizer.
    """
    if not isinstance(given, list) or len(given) < 2:
        found = f"{len(given)} parts" if isinstance(given, list) else type(given).__name__
        raise InputError(
            f"insert: found {found}, expected [left, right]: a list of texts, or of lists of ids, between which "
            "something is missing"
        )
    parts = [_ids(tokenizer, part, place, special) for place, part in enumerate(given)]
    check_parts(parts)
    return [*chain(*parts)], tuple(dict.fromkeys(gaps_of(parts).tolist()))


def _ids(tokenizer: Tokenizer | None, part: Any, place: int, special: bool) -> list[int]:
    if isinstance(part, list) and all(type(token) is int for token in part):
        return part
    if not isinstance(part, str):
        raise InputError(f"insert: found {str(part)!r:.40} in place {place}, expected a text or a list of ids")
    if tokenizer is None:
        raise InputError("insert: found texts, but the model has no tokenizer.json; add one, or give lists of ids")
    return tokenizer.part(part, special) if place else tokenizer.plain(part, special)


def inserted(checkpoint: Checkpoint, tokens: Sequence[int], own: Sequence[bool], gaps: Sequence[int]) -> list[Any]:
    """Of each gap the columns of what was inserted, its ids and its text. `own`: which of the tokens were inserted."""
    given = [column for column, is_own in enumerate(own) if not is_own] + [len(own)]
    spans = [(given[gap] + 1, given[gap + 1]) for gap in gaps]
    tokenizer = checkpoint.tokenizer
    return [
        {
            "start": start,
            "end": end,
            "token_ids": list(tokens[start:end]),
            "text": None if tokenizer is None else tokenizer.decode(tokens[start:end]),
        }
        for start, end in spans
    ]
