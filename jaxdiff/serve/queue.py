"""What goes into the slots and what comes out: requests, refusals, answers, and the meter of their cost."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Int, Key

from jaxdiff.decode import arrays, checks, completion
from jaxdiff.decode.decoder import Decoder
from jaxdiff.decode.guide import check_greedy
from jaxdiff.decode.program import Timed
from jaxdiff.protocols import Model
from jaxdiff.pytree import number_names
from jaxdiff.stoppers.strings import encoded
from jaxdiff.types import InputError


@dataclasses.dataclass(frozen=True)
class Request:
    """What is to be decoded.

    Attributes:
        ids: a prompt, or, where `is_canvas`, a canvas whose [MASK] positions are to be filled.
        id: the caller's name for it; None: its number.
        number: its key is the run's, folded with this; -1: its place in the queue, from 0.
        gaps: for an insertion model, the ids (counted from 0) behind which something may be missing: `ids` are then a
            text with holes of unknown length; None: a prompt, and behind its last.
        key: its own, in place of that.
        max_tokens: tokens to generate, at most what the slots generate, which is the default; not for a canvas.
        decoder: its own numbers (thresholds, temperature ...): the slots' decoder with other values, and nothing else.
        stop_strings: texts that end it, in place of those of the decoder, which must have `stop_strings` with room for
            them; None: the decoder's.
        reference: the tokens of its standard answer; the stream fills it in, for a policy that needs it.
        watch: told what there is of it, after each serve step that it is not done in; under a policy that needs a
            reference, of its standard decode first.
        wanted: asked before each serve step; once it says no, the request is given up, and its slot is free.
    """

    ids: Any  # a sequence of int: checked when its turn comes, so that a bad one harms nobody
    id: Any = None
    number: int = -1
    is_canvas: bool = False
    gaps: tuple[int, ...] | None = None
    key: Any = None  # one, checked when its turn comes too
    max_tokens: int | None = None
    decoder: Decoder | None = None
    stop_strings: Any = None  # a sequence of str, checked when its turn comes
    reference: Int[np.ndarray, " G"] | None = None
    watch: Callable[[Partial], None] | None = None
    wanted: Callable[[], bool] | None = None

    @property
    def given_up(self) -> bool:
        """Whether nobody wants it any longer."""
        return self.wanted is not None and not self.wanted()


@dataclasses.dataclass(frozen=True)
class Refusal:
    """A request that cannot be decoded, and why. Its neighbours are not touched by it."""

    number: int
    id: Any
    error: str


@dataclasses.dataclass(frozen=True)
class Answer:
    """One request's share of a `Result`, as numpy. `tokens` are the generated ones (of a canvas, all), untrimmed.

    `seconds` are those of the device from when the request got its slot until it was done, compiling apart. Slots run
    at the same time, so that the answers' seconds add up to more than the stream's.
    """

    request: Request
    tokens: Int[np.ndarray, " G"]
    commit_step: Int[np.ndarray, " G"]
    log_prob: Float[np.ndarray, " G"]
    length: int
    nfe: int
    cheap: int
    work: float
    reason: int
    near_ties: int
    not_finite: int
    seconds: float
    guide_nfe: int = 0
    log_weight: float = 0.0
    checks: int = 0


@dataclasses.dataclass(frozen=True)
class Partial:
    """What there is of a request's answer, as `Answer` has it: [MASK] stands where nothing is committed.

    The first `settled` of the tokens will not change; those behind them may, under a policy that takes commits back.
    """

    request: Request
    tokens: Int[np.ndarray, " G"]
    commit_step: Int[np.ndarray, " G"]
    log_prob: Float[np.ndarray, " G"]
    settled: int
    nfe: int


def answer_of(
    request: Request, found: Any, row: int, tokens: slice, trace: slice, seconds: float, *, cheap: int = 0
) -> Answer:
    """A row of a whole batch's result that is on the host, of a process beside masks; `tokens` and `trace`: which
    columns of its tokens, and of their steps and log-probabilities, are the answer's.
    """
    return Answer(
        request=request,
        tokens=np.asarray(found.tokens[row, tokens]).copy(),  # not a view that holds the whole batch
        commit_step=np.asarray(found.commit_step[row, trace]).copy(),
        log_prob=np.asarray(found.log_prob[row, trace]).copy(),
        length=int(found.lengths[row]),
        nfe=int(found.nfe[row]),
        cheap=cheap,
        work=float(found.work[row]),
        reason=int(found.reason[row]),
        near_ties=int(found.near_ties[row]),
        not_finite=int(found.not_finite[row]),
        seconds=seconds,
    )


class Meter(Timed):
    """`Timed` for streams, with what the slots did so far.

    Attributes:
        steps: steps of all slots together.
        slot_steps: the same, times the slots: rows that were computed.
        busy: of these, rows that a live request took part in.
    """

    def __init__(self, *, persistent_cache: bool = True) -> None:
        super().__init__(persistent_cache=persistent_cache)
        self.steps = self.slot_steps = self.busy = 0

    @property
    def occupancy(self) -> float:
        """The mean share of slots that had work."""
        return self.busy / max(self.slot_steps, 1)

    def beside(self) -> Meter:
        """Another meter, that counts from nothing and shares the compiled programs."""
        other = Meter()
        other._around, other._programs = self._around, self._programs
        return other

    def count(self, steps: int, rows: int, busy: int) -> None:
        self.steps, self.slot_steps, self.busy = self.steps + steps, self.slot_steps + steps * rows, self.busy + busy


def numbered(requests: Iterable[Any]) -> Iterator[Request | Refusal | None]:
    """Requests, or bare prompts, with their place in the queue as number and name where they have none."""
    place = -1
    for item in requests:
        if item is None:
            yield None
            continue
        place += 1
        if isinstance(item, Refusal):
            yield item
            continue
        request = item if isinstance(item, Request) else Request(item)
        number = place if request.number == -1 else request.number
        yield dataclasses.replace(request, number=number, id=number if request.id is None else request.id)


def check_request(
    model: Model, request: Request, gen_length: int, decoder: Decoder, key: Key[Array, ""] | None = None
) -> None:
    """Raises the InputError that `decode` or `infill` would raise for this request, and that of a request whose own
    key, length or decoder cannot share the slots.
    """
    if request.gaps is not None:
        raise InputError(
            f"insert: found a text with holes for a model that fills masks ({type(model).__name__}), expected an "
            "insertion model; give canvas_ids, with as many masks as are to be filled"
        )
    ids = checked_ids(request)
    length, block_length = len(request.ids), decoder.block_length
    if request.is_canvas:
        checks.check_canvas(decoder, model)
        block = checks.block_of(model, block_length, default=length)
        if length % (whole := checks.whole_block(model, block)):
            raise InputError(f"canvas_ids: found {length} ids in blocks of {whole}, expected whole blocks")
        checks.check_lengths(model, 0, length, whole)
    else:
        block = checks.block_of(model, block_length)
        checks.check_lengths(model, length, gen_length, block)
    arrays.check_ids(model, ids, np.zeros(1, np.int32), masks_allowed=request.is_canvas, alone=True)
    _check_own(request, gen_length, decoder, key)
    if request.is_canvas:
        completion.check_filling(decoder, model, ids, alone=True)
    else:
        completion.check_answer(decoder, model, request.max_tokens or gen_length)
    if request.is_canvas or request.decoder is not None or block_length is None:
        checks.check_block(decoder if request.decoder is None else request.decoder, block)


def checked_ids(request: Request) -> np.ndarray:
    """Its ids, [1 n]. Raises InputError for what are none, and for a number that makes no key."""
    try:
        ids = np.asarray([request.ids])
    except ValueError:
        ids = np.zeros(0)
    if ids.ndim != 2 or (ids.size and ids.dtype.kind not in "iuO"):
        raise InputError(f"ids: found {request.ids!r:.80}, expected a list of whole numbers")
    if not ids.size:
        what = "canvas_ids" if request.is_canvas else "prompt"
        raise InputError(f"{what}: found no ids, expected at least one")
    if not 0 <= request.number < 2**31:
        raise InputError(f"number: found {request.number}, expected 0 to 2**31 - 1")
    return ids


def _check_own(request: Request, gen_length: int, decoder: Decoder, key: Key[Array, ""] | None) -> None:
    most = None if request.is_canvas else gen_length
    if request.max_tokens is not None and (most is None or not 1 <= request.max_tokens <= most):
        expected = "none for a canvas" if most is None else f"1 to {most}, what the slots generate"
        raise InputError(f"max_tokens: found {request.max_tokens}, expected {expected}")
    _check_strings(request, decoder)
    if request.key is not None:
        arrays.checked_keys(request.key, 1)
        if key is not None and request.key.dtype != key.dtype:
            raise InputError(f"key: found one of {request.key.dtype}, expected {key.dtype}, as the run's")
    if request.decoder is not None:
        if jax.tree.structure(request.decoder) != jax.tree.structure(decoder):
            raise InputError("decoder: found another than that of the slots, expected the same one with other numbers")
        for name, given, held in zip(
            number_names(decoder), *map(jax.tree.leaves, (request.decoder, decoder)), strict=True
        ):
            if name is None and given is not held and not np.array_equal(given, held):
                raise InputError(
                    "decoder: found other weights, stop strings or constraint than those of the slots, expected the "
                    "same one with other numbers; a request's own strings are its stop_strings"
                )
        checks.check_numbers(request.decoder, None)
        check_greedy(request.decoder)


def _check_strings(request: Request, decoder: Decoder) -> None:
    room, own = decoder.stop_strings, request.stop_strings
    if own is None:
        if request.is_canvas:
            checks.check_no_strings(decoder)
        return
    if (count := len(encoded(own))) and request.is_canvas:
        raise InputError(f"stop_strings: found {count} for a canvas, expected none: its holes are all to be filled")
    if count and decoder.constraint is not None:
        raise InputError(
            f"stop_strings: found {count} with a constraint, expected none: they would end a text before it matches"
        )
    if count and room is None:
        raise InputError(
            f"stop_strings: found {count}, but the decoder has none, nor how its tokens are spelled; give it "
            "stop_strings=tokenizer.stop_strings()"
        )
    if room is not None:
        room.lines(own)
