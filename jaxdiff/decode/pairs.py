"""The rows that `choose` compares: each choice of each row in its slot, checked and laid out."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Int, Key

from jaxdiff.decode import arrays, checks
from jaxdiff.decode.decoder import Decoder
from jaxdiff.decode.state import Rows
from jaxdiff.protocols import Model
from jaxdiff.types import InputError


@dataclasses.dataclass(frozen=True)
class Pairs:
    """n pairs of a row and a choice, as numpy.

    Attributes:
        row, choice: whose, and which of its choices.
        canvas: the row's text, its slot [MASK] and as long as the choice; [MASK] past its end, and in the overhang.
        answer: the choice where the slot is, with the end-of-texts behind it; [MASK] elsewhere.
        last: one past the last column of the row's text.
        origin: of each row, the column of its first token.
        first: the column where slots of prompts begin; 0 of canvases.
        length: L, columns of the canvas without the overhang.
        shape: rows, and the most choices of one.
    """

    row: Int[np.ndarray, " n"]
    choice: Int[np.ndarray, " n"]
    canvas: Int[np.ndarray, "n F"]
    answer: Int[np.ndarray, "n F"]
    last: Int[np.ndarray, " n"]
    origin: Int[np.ndarray, " B"]
    first: int
    length: int
    shape: tuple[int, int]

    def rows(self, model: Model, keys: Key[Array, " n"], *, answered: bool) -> Rows:
        """As a decode takes them, each with its choice as `reference`; and in its slot where `answered`."""
        given = self.answer != model.config.mask_token_id
        canvas = np.where(given, self.answer, self.canvas) if answered else self.canvas
        on_device = jax.device_put((canvas, self.origin[self.row], self.last, self.answer))
        canvas, origin, last, answer = on_device
        return Rows(canvas, origin, last, keys, answer)

    def of(self, best: Int[np.ndarray, " B"]) -> Pairs:
        """One choice of each row."""
        at = np.flatnonzero(best[self.row] == self.choice)
        some = (self.row, self.choice, self.canvas, self.answer, self.last)
        row, choice, canvas, answer, last = (leaf[at] for leaf in some)
        return dataclasses.replace(self, row=row, choice=choice, canvas=canvas, answer=answer, last=last)

    def table(self, values: Any) -> np.ndarray:
        """A value of each pair as [B C]; 0 where a row has no such choice."""
        found = np.zeros(self.shape, np.asarray(values).dtype)
        found[self.row, self.choice] = values
        return found


def pairs_of(
    model: Model,
    decoder: Decoder,
    given: Int[np.ndarray, "B L"],
    choices: Sequence[Any] | np.ndarray,
    slot: tuple[int, int] | None,
    gen_length: int | None,
    origin: Any,
) -> Pairs:
    """The pairs of what `choose` is given. Raises the InputErrors that it names."""
    count, width = given.shape
    if given.dtype.kind not in "iu" or width < 1:
        raise InputError(
            f"prompts: found {given.dtype} of length {width}, expected token ids, one at least in each row"
        )
    mask = model.config.mask_token_id
    masked = given == mask
    starts = arrays.checked_origin(origin, count, width)
    arrays.check_ids(model, given, starts, masks_allowed=True)
    each = _each_row(choices, count)
    is_canvas = bool(np.any(masked & (np.arange(width)[None] >= np.asarray(starts)[:, None])))
    if is_canvas:
        _check_canvas(model, decoder, given, gen_length, origin)
        spans = _spans(masked, slot)
    else:
        if slot is not None:
            raise InputError(f"slot: found {slot} in prompts, which hold no [MASK]; give canvases, or leave it out")
        spans = _behind(model, decoder, width, each, gen_length)
    overhang = checks.overhang_of(model)
    length = width if is_canvas else max(stop for _, stop in spans)
    lines = [(row, number) for row, own in enumerate(each) for number in range(len(own))]
    canvas = np.full((len(lines), length + overhang), mask, np.int32)
    answer, last = np.full_like(canvas, mask), np.zeros(len(lines), np.int32)
    for at, (row, number) in enumerate(lines):
        (start, stop), tokens, text = spans[row], each[row][number], given[row]
        _check_choice(model, tokens, stop - start, _named(row, count) + f"choice {number}")
        if not is_canvas:
            tokens = [*tokens, *[model.config.eos_token_id] * (stop - start - len(tokens))]
        end = start + len(tokens)
        answer[at, start:end] = tokens
        canvas[at, :start] = text[:start]
        canvas[at, end : end + width - stop] = text[stop:] if is_canvas else ()
        last[at] = end + (width - stop if is_canvas else 0)
    _check_apart(answer, lines, count)
    rows, numbers = np.asarray(lines, np.int32).T
    return Pairs(
        row=rows,
        choice=numbers,
        canvas=canvas,
        answer=answer,
        last=last,
        origin=np.asarray(starts),
        first=0 if is_canvas else width,
        length=length,
        shape=(count, max(map(len, each))),
    )


def _each_row(choices: Any, count: int) -> list[list[list[int]]]:
    """Each row's choices. Raises InputError for what is no list of sequences of ids, nor one of these for each row."""
    wrong = InputError(
        f"choices: found {choices!r:.60}, expected a list of choices, each a sequence of token ids, or one list for "
        "each row"
    )

    def listed(value: Any) -> list[Any]:
        if isinstance(value, str | bytes | dict) or not hasattr(value, "__len__"):
            raise wrong
        return np.asarray(value).tolist() if hasattr(value, "dtype") else list(value)

    outer = listed(choices)
    for_all = all(not len(listed(one)) or isinstance(one[0], int | np.integer) for one in outer)
    if not for_all and len(outer) != count:
        raise InputError(f"choices: found lists for {len(outer)} rows, expected {count}, or one list for all")
    each = [[listed(one) for one in listed(own)] for own in ([outer] * count if for_all else outer)]
    for row, own in enumerate(each):
        if not own:
            where = "" if for_all else f" for row {row}"
            raise InputError(f"choices: found none{where}, expected one at least; give the answers to choose from")
        if not all(isinstance(token, int | np.integer) for one in own for token in one):
            raise wrong
    return [[[int(token) for token in one] for one in own] for own in each]


def _check_canvas(model: Model, decoder: Decoder, given: Any, gen_length: int | None, origin: Any) -> None:
    width = given.shape[1]
    if gen_length is not None:
        raise InputError(f"gen_length: found {gen_length} for canvases, whose slot is there; leave it out")
    if origin is not None and np.any(np.asarray(origin)):
        raise InputError("origin: found padding in canvases, expected none; leave it out, and give rows of one length")
    block = checks.block_of(model, decoder.block_length, default=width)
    checks.check_lengths(model, 0, width, block)


def _spans(masked: Any, slot: tuple[int, int] | None) -> list[tuple[int, int]]:
    """Each canvas' slot. Raises InputError where one has none, or where that is not all [MASK]."""
    count, width = masked.shape
    if slot is not None:
        whole = len(slot) == 2 and all(isinstance(at, int | np.integer) for at in slot)
        if not whole or not 0 <= slot[0] < slot[1] <= width:
            raise InputError(
                f"slot: found {slot}, expected its first column and one past its last, of {width} in the canvas"
            )
        start, stop = map(int, slot)
        if tokens := np.argwhere(~masked[:, start:stop]).tolist():
            row, column = tokens[0]
            raise InputError(
                f"slot: found a token in row {row}, column {start + column}, expected [MASK] from {start} to {stop - 1}"
            )
        return [(start, stop)] * count
    if not np.all(np.any(masked, axis=1)):
        row = int(np.argmin(np.any(masked, axis=1)))
        raise InputError(
            f"row {row}: found no [MASK], but there is in other rows, expected a slot in each; give prompts apart"
        )
    starts = np.argmax(masked, axis=1)
    behind = ~masked & (np.arange(width)[None] > starts[:, None])
    stops = np.where(np.any(behind, axis=1), np.argmax(behind, axis=1), width)
    return [(int(start), int(stop)) for start, stop in zip(starts, stops, strict=True)]


def _behind(
    model: Model, decoder: Decoder, width: int, each: list[list[list[int]]], gen_length: int | None
) -> list[tuple[int, int]]:
    """Each prompt's slot, of whole blocks where the decoder says how long these are."""
    block = 1 if model.attention_block is not None else decoder.block_length or 1
    spans = []
    for own in each:
        longest = max(map(len, own)) + 1
        length = -(-longest // block) * block if gen_length is None else gen_length
        checks.check_lengths(model, width, length, block)
        spans.append((width, width + length))
    return spans


def _named(row: int, count: int) -> str:
    """How a message names a row; that of a request alone it does not."""
    return "" if count == 1 else f"row {row}, "


def _check_choice(model: Model, tokens: list[int], room: int, which: str) -> None:
    """Raises InputError for a choice that its slot of so many tokens does not hold, or that cannot be written."""
    what, config = f"choices: found one ({which})", model.config
    if not tokens:
        raise InputError(f"{what} without tokens, expected one at least; leave it out")
    if len(tokens) > room:
        raise InputError(
            f"{what} of {len(tokens)} tokens, expected at most {room}, which the slot holds; make that longer"
        )
    if wrong := [token for token in tokens if not 0 <= token < config.vocab_size]:
        raise InputError(f"{what} with id {wrong[0]}, expected 0 to {config.vocab_size - 1}")
    if config.mask_token_id in tokens:
        raise InputError(f"{what} that holds [MASK] (id {config.mask_token_id}), expected tokens alone; take it out")


def _check_apart(answer: Int[np.ndarray, "n F"], lines: list[tuple[int, int]], count: int) -> None:
    """Raises InputError for two choices of a row that put the same tokens into its slot."""
    seen: dict[tuple[int, bytes], int] = {}
    for (row, number), tokens in zip(lines, answer, strict=True):
        first = seen.setdefault((row, tokens.tobytes()), number)
        if first != number:
            raise InputError(
                f"choices: found the same tokens twice ({_named(row, count)}choices {first} and {number}), expected "
                "each once; leave one out"
            )
