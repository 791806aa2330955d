"""Drafts: what a causal model will say next is guessed, and one pass of it over the guesses says how far they hold.

    begin -> State -> while any row is live: propose, verify, accept -> finish -> Speculated

A process of its own beside the decode of masks: there is no mask, no block, no policy that chooses where, and of a pass
any number of tokens may be kept. The target, its noise and its text are those of `jaxdiff.decode`; a draft changes what
they cost alone. One file per draft; this room imports `decode`, and `decode` does not know it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from jaxdiff.drafts.api import of_row, prepare_speculate, speculate
from jaxdiff.drafts.base import Draft
from jaxdiff.drafts.denoiser import Denoiser
from jaxdiff.drafts.loop import Speculated
from jaxdiff.drafts.ngram import Ngram
from jaxdiff.drafts.recycling import Recycling
from jaxdiff.pytree import InputError
from jaxdiff.registry import Registry, arguments_of, parse_arguments

DRAFTS = Registry("draft", {"recycling": Recycling, "ngram": Ngram, "denoiser": Denoiser})


def parse(text: str, *, loaded: Callable[[str], Denoiser] | None = None) -> Draft | None:
    """The draft that `text` names.

        recycling      recycling:nodes=64      ngram      denoiser:model=gsm-1m,tokens=16

    `loaded` makes one of a model's name; without it `denoiser` is checked, and None.

    Raises InputError for a name or an argument that is not known, with those that are.
    """
    name, _, rest = text.strip().partition(":")
    if name != "denoiser":
        return DRAFTS.parse(text)
    label, known = f"draft {name}", {"model": {"static": True}, **arguments_of(Denoiser)}
    values: dict[str, Any] = parse_arguments(label, known, [item for item in rest.split(",") if item])
    for key, value in values.items():
        if value not in (options := known[key].get("options", (value,))):
            raise InputError(f"{label} {key}: found {value!r}, expected one of {', '.join(options)}")
    if not (folder := values.pop("model", "")):
        raise InputError(f"{label}: found no model, expected the folder of one; give {name}:model=NAME")
    return None if loaded is None else dataclasses.replace(loaded(folder), **values)


__all__ = ["DRAFTS", "Denoiser", "Draft", "Ngram", "Recycling", "Speculated", "of_row", "parse", "prepare_speculate", "speculate"]
