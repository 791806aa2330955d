"""Whether any text of a constraint fits a canvas: asked on the host, before anything is compiled."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Int

from jaxdiff.decode.decoder import Decoder
from jaxdiff.decode.vocabulary import Vocabulary
from jaxdiff.protocols import Automaton, Model
from jaxdiff.types import BEGUN, ENDED, ENDS, NOWHERE, InputError


def check_answer(decoder: Decoder, model: Model, length: int) -> None:
    """Raises InputError where no text of the constraint, if there is one, takes at most `length` tokens."""
    constraint = _tables(decoder)
    if constraint is None:
        return
    forbidden = Vocabulary.of(model, decoder.sampling).forbidden
    ends = any(token not in forbidden for token in model.config.eos_ids)
    holes = np.full(length, model.config.mask_token_id)
    if not _completes(constraint, holes, model.config.mask_token_id, ends):
        room = f"at most {length}" if ends else f"exactly {length}, as end-of-text is forbidden"
        raise InputError(
            f"constraint: no text that matches is of {room} tokens; generate more of them, or let a shorter text match"
        )


def check_filling(decoder: Decoder, model: Model, canvas: Any, *, alone: bool = False) -> None:
    """Raises InputError where no text of the constraint, if there is one, fills a canvas from its first hole to its
    last. On concrete arrays [B L]; under a trace the caller vouches for them. `alone`: they are one request's, and no
    row is named.
    """
    constraint = _tables(decoder)
    if constraint is None or isinstance(canvas, jax.core.Tracer):
        return
    mask = model.config.mask_token_id
    for row, tokens in enumerate(np.asarray(canvas)):
        holes = np.flatnonzero(tokens == mask)
        if holes.size and not _completes(constraint, tokens[holes[0] : holes[-1] + 1], mask, False):
            where = "" if alone else f"row {row}: "
            count = holes[-1] + 1 - holes[0]
            raise InputError(
                f"constraint: {where}no text that matches fills the {count} columns from {holes[0]} to {holes[-1]} of "
                "the canvas, what is given there included; change the number of holes, or the constraint"
            )


def _tables(decoder: Decoder) -> Automaton | None:
    """The constraint's tables, on the host; None where there are none, or where they are traced."""
    tables = decoder.automaton
    traced = any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tables))
    return None if tables is None or traced else jax.device_get(tables)


def _completes(constraint: Automaton, tokens: Int[np.ndarray, " n"], mask_id: int, ends: bool) -> bool:
    """Whether the holes among these tokens can be filled so that all of them are a text; `ends`: which may be over
    before the last of them.
    """
    kinds = constraint.of[np.minimum(tokens, len(constraint.of) - 1)]
    kinds = np.where((kinds == ENDS) & (not ends), NOWHERE, kinds)
    behind: Bool[np.ndarray, " S"] = constraint.accepts
    for token, kind in zip(tokens[::-1], kinds[::-1], strict=True):
        if token == mask_id:
            behind = (constraint.hole @ behind > 0) | (ends & behind[ENDED] & constraint.accepts)
        else:
            behind = behind[constraint.next[kind]]
    return bool(behind[BEGUN])
