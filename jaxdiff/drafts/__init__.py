"""Drafts: what a causal model will say next is guessed, and one pass of it over the guesses says how far they hold.

    begin -> State -> while any row is live: propose, verify, accept -> finish -> Speculated

A process of its own beside the decode of masks: there is no mask, no block, no policy that chooses where, and of a pass
any number of tokens may be kept. The target, its noise and its text are those of `jaxdiff.decode`; a draft changes what
they cost alone. One file per draft; this room imports `decode`, and `decode` does not know it.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxdiff.drafts.api import of_row, prepare_speculate, speculate
from jaxdiff.drafts.base import Draft
from jaxdiff.drafts.denoiser import Denoiser
from jaxdiff.drafts.loop import Speculated
from jaxdiff.drafts.ngram import Ngram
from jaxdiff.drafts.recycling import Recycling
from jaxdiff.pytree import InputError
from jaxdiff.registry import Registry, arguments_of, parse_arguments

DENOISER = "denoiser"  # the one whose weights lie in a model's folder
DRAFTS = Registry("draft", {"recycling": Recycling, "ngram": Ngram, DENOISER: Denoiser})


def model_of(text: str) -> str | None:
    """The model's name that a draft's text holds, None where it has none: `denoiser:model=gsm-1m,tokens=16`.

    Raises InputError for a draft or an argument that is not known (with those that are), or a value out of range.
    """
    name, _, rest = text.strip().partition(":")
    if name != DENOISER:
        DRAFTS.parse(text)
        return None
    values = _arguments(rest)
    for key, value in values.items():
        if value not in (options := arguments_of(Denoiser).get(key, {}).get("options", (value,))):
            raise InputError(f"draft {name} {key}: found {value!r}, expected one of {', '.join(options)}")
    if not values.get("model"):
        raise InputError(f"draft {name}: found no model, expected the name of one; give {name}:model=NAME")
    return values["model"]


def parse(text: str, denoiser: Denoiser | None = None) -> Draft:
    """The draft that `text` names.

        recycling      recycling:nodes=64      ngram      denoiser:model=gsm-1m,tokens=16

    `denoiser`: of the model that it names (`model_of`). Raises as `model_of`.
    """
    if model_of(text) is None:
        return DRAFTS.parse(text)
    assert denoiser is not None
    values = _arguments(text.strip().partition(":")[2])
    return dataclasses.replace(denoiser, **{key: value for key, value in values.items() if key != "model"})


def _arguments(rest: str) -> dict[str, Any]:
    known = {"model": {"static": True}, **arguments_of(Denoiser)}
    return parse_arguments(f"draft {DENOISER}", known, [item for item in rest.split(",") if item])


__all__ = [
    "DRAFTS",
    "Denoiser",
    "Draft",
    "Ngram",
    "Recycling",
    "Speculated",
    "model_of",
    "of_row",
    "parse",
    "prepare_speculate",
    "speculate",
]
