"""Tensors whose names are not quite those that their family publishes: what wraps a model for training wraps its names,
and some hold buffers that follow from config.json.
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping

import numpy as np

from jaxdiff.convert.engine import Chosen, Tensors
from jaxdiff.convert.table import Plan
from jaxdiff.models.config import Config
from jaxdiff.types import InputError

# What stands before all names of a model that was saved from within another: of DistributedDataParallel, peft, a
# trainer, and of a class whose attribute `model` it is.
OUTER = ("model.", "module.", "base_model.model.")
# Modules that PyTorch puts around others, anywhere in a name: torch.compile, FSDP, activation checkpoints.
_AROUND = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_INNER = "model."  # what the names of a model's body lack where it was saved without its head


def known_name(name: str, known: Container[str]) -> str | None:
    """A tensor's name without what wraps it, if that is one of the `known`; else None."""
    name = _AROUND.sub("", name)
    while name not in known:
        outer = next((word for word in OUTER if name.startswith(word)), None)
        if outer is None:
            return None
        name = name[len(outer) :]
    return name


def unwrapped(tensors: Tensors, plan: Plan) -> tuple[Tensors, str]:
    """The tensors under the names of the plan, and what was taken from all of them (`-` before it: was added); "" where
    they have these names as they are.

    Names are changed where every tensor of the plan, or more of them, is found so: all of them alike, or none.
    """
    known = plan.tensors.keys() | plan.copies.keys()

    def found(names: Mapping[str, str]) -> int:
        return len(plan.tensors.keys() & names.keys())

    plain = {_AROUND.sub("", name): name for name in tensors.specs}
    around = "".join(sorted({word for name in tensors.specs for word in _AROUND.findall(name)}))
    best, taken = plain, around
    for before in _before(plain, known):
        stripped = {name.removeprefix(before): there for name, there in plain.items() if name.startswith(before)}
        if len(stripped) == len(plain) == len(tensors.specs) and found(stripped) > found(best):
            best, taken = stripped, before + around
    inner = {name if name in known else _INNER + name: there for name, there in plain.items()}
    if len(inner) == len(tensors.specs) and found(inner) > found(best):
        best, taken = inner, f"-{_INNER}"
    if len(best) < len(tensors.specs) or not taken:  # two would have one name: as they are
        return tensors, ""
    return Chosen(tensors, best), taken


def _before(names: Mapping[str, str], known: Container[str]) -> list[str]:
    """What stands before known names, as far as it is made of words that wrap a model; the longest first."""
    first = next(iter(names), "")
    words, found = "", []
    while outer := next((word for word in OUTER if first.startswith(words + word)), None):
        words += outer
        found.append(words)
    return found[::-1]


def told(prefix: str) -> str:
    """What `unwrapped` did to the names, for people."""
    return f"{prefix[1:]!r} was added to all" if prefix.startswith("-") else f"{prefix!r} was taken from all"


def without_frequencies(tensors: Tensors, config: Config) -> tuple[Tensors, list[str]]:
    """Without the buffers of rotary frequencies that older PyTorch code stored, which follow from config.json; and the
    names of those.

    Raises InputError where they do not.
    """
    theta, rotated = config.rope_theta, config.rotary_dim
    wanted = theta ** (-np.arange(0, rotated, 2) / rotated)
    names = [key for key in tensors.specs if key.endswith("rotary_emb.inv_freq")]
    for key in names:
        found = tensors.read(key, slice(None)).astype(np.float64)
        if found.shape != wanted.shape or not np.allclose(found, wanted, rtol=1e-2, atol=1e-6):
            raise InputError(
                f"{tensors.specs[key].file} {key}: found other rotary frequencies than those of config.json's "
                f"rope_theta {theta:g} in {rotated} dimensions; correct config.json"
            )
    kept = {key: key for key in tensors.specs if key not in names}
    return (Chosen(tensors, kept) if names else tensors), names
