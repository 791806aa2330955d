"""`decode_stream`: a queue of requests through a fixed number of slots; answers come out as they are done.

    queue -> check -> slots -> serve_step (`slots.py`, one compiled program) -> answers
                ^ rows that are done are replaced before the next serve step

Python sees serve steps, never decode steps. Requests of mixed lengths share the slots: a canvas is as wide as the
longest prompt in flight, in buckets that double or in the widths that the caller names, and is repadded on the left
while rows are in it. A queue that is fed while it is read says by a None that nothing is in it now. What goes in is
made by numpy and put on the device: `jnp.asarray` is a program to compile, for each shape.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Int, Key, UInt32

from jaxdiff.decode import api, arrays, checks, completion
from jaxdiff.decode.batches import bucket
from jaxdiff.decode.decoder import Decoder
from jaxdiff.decode.guide import Guide, check_context
from jaxdiff.decode.layout import Setup, layout_of
from jaxdiff.decode.loop import begin
from jaxdiff.decode.state import Rows, State, row_keys
from jaxdiff.parallel.mesh import check_axes, everywhere
from jaxdiff.parallel.rules import place
from jaxdiff.protocols import Model
from jaxdiff.pytree import numbers_of, with_numbers
from jaxdiff.serve.queue import Answer, Meter, Partial, Refusal, Request, check_request, numbered
from jaxdiff.serve.slots import Incoming, repad, serve_step
from jaxdiff.types import REFERENCE, InputError, Params

UNBOUNDED = 2**30  # steps
END = object()  # of a queue


def decode_stream(
    model: Model,
    params: Params,
    requests: Iterable[Request | Sequence[int] | Int[np.ndarray, " P"] | None],
    decoder: Decoder | None = None,
    *,
    slots: int = 8,
    gen_length: int = 256,
    key: Key[Array, ""] | Key[Array, " n"] | None = None,
    mesh: Mesh | None = None,
    free: int = 1,
    most: int = UNBOUNDED,
    widths: Sequence[int] = (),
    meter: Meter | None = None,
    guide: Guide | None = None,
) -> Iterator[Answer | Refusal]:
    """Decode a queue of requests, `slots` at a time; yields each answer when it is there.

    An answer is what `decode` (or, for a canvas, `infill`) gives for that request alone, with its own key and numbers:
    the same tokens, NFE and commit trace, whatever the slots and the order of the queue. The queue is read as slots
    become free, so it may be endless; host memory does not grow with it. A canvas that is not as long as what the slots
    generate waits until they are empty, and the queue behind it too: give those of one length together.

    Args:
        requests: `Request`s, or bare prompts. None stands for nothing at the moment: the slots go on with what they
            have, and ask again after a serve step, or at once where they have nothing; such a queue should then wait.
        decoder: as in `decode`; its numbers serve every request that brings none of its own. Without a block length,
            prompts have that of `decode`, canvases that of `infill`.
        slots: rows that are decoded at a time; fewer where the queue ends sooner, and a multiple of a mesh's data
            devices. A forward costs as much as all slots.
        key: of the run; request i draws from `fold_in(key, i)` unless it has a key of its own.
        free: rows that must be done before the compiled loop is left to look at the queue.
        most: steps after which it is left in any case.
        widths: columns that prompts are padded to, ascending, for a queue whose lengths are known
            (`decode.batches.widths_of`); a prompt that fits none has 32 doubled until it does, as all have without.
        meter: told of time and of the slots' work, and keeps the compiled programs: give the same one again, and
            nothing is compiled twice.
        guide: as in `decode`; prompts alone go with one.

    Yields, in no order, an `Answer` or a `Refusal` for each request: a bad one is refused when its turn comes, with
    its id, and the others go on; one that is no longer `wanted` is refused too.

    Raises InputError now, before compilation, for what cannot serve any request: slots, lengths, a number for each
    row, a policy or a fill that refuses the block; where a canvas has another block than a prompt, each request is
    refused when its turn comes.
    """
    if min(slots, free, most) < 1:
        raise InputError(f"slots, free, most: found {slots}, {free}, {most}, expected at least 1 of each")
    decoder = Decoder() if decoder is None else decoder
    block = checks.block_of(model, decoder.block_length)
    checks.check_lengths(model, 0, gen_length, block)
    known = decoder.block_length is not None or model.attention_block is not None
    checks.check_decoder(decoder, model, None, block if known else None, guide=guide, longest=gen_length + 1)
    completion.check_answer(decoder, model, gen_length)
    decoder.policy.check(model, params)
    decoder.fill.check(model, params)
    devices = 1
    if mesh is not None:
        check_axes(mesh)
        params, devices = place(model.config, params, mesh), mesh.shape["data"]
        guide = None if guide is None else guide.over(mesh)
    key = jax.random.key(0) if key is None else key
    arrays.check_typed(key)
    if key.size > 1:
        raise InputError(f"key: found {key.size} of them, expected one; request i draws from fold_in(key, i)")
    meter = Meter() if meter is None else meter
    if REFERENCE in decoder.policy.needs:
        plain = api.standard(decoder)
        answers = decode_stream(
            *(model, params, requests, plain),
            slots=slots,
            gen_length=gen_length,
            key=key,
            mesh=mesh,
            free=free,
            widths=widths,
            meter=meter.beside(),
        )
        requests = map(_with_reference, answers)  # type: ignore[assignment]
    layout = layout_of(model, decoder, first=0, generated=gen_length, block=block, mesh=mesh)
    laid = decoder if mesh is None else everywhere(decoder, mesh)
    setup = Setup(api.guided(model, decoder), params, laid, layout, guide)
    engine = _Engine(setup, gen_length, key, (free, most), tuple(widths), meter)
    return engine.serve(numbered(requests), slots, devices)


def _with_reference(answer: Answer | Refusal) -> Request | Refusal:
    return answer if isinstance(answer, Refusal) else dataclasses.replace(answer.request, reference=answer.tokens)


def _unwanted(request: Request) -> Refusal:
    return Refusal(request.number, request.id, "given up: it is no longer wanted")


@dataclasses.dataclass(frozen=True)
class _Kind:
    """What requests must have in common to share the slots: what each generates, its blocks and their overhang."""

    generated: int
    block: int
    overhang: int


@dataclasses.dataclass(frozen=True)
class _Slot:
    """Who is in a slot, and since which second of the meter."""

    request: Request
    since: float


class _Engine:
    """The slots on the host: who is in them since when, how wide the canvas is, and the state on the device."""

    def __init__(
        self,
        setup: Setup,
        gen_length: int,
        key: Key[Array, ""],
        bounds: tuple[int, int],
        widths: tuple[int, ...],
        meter: Meter,
    ) -> None:
        """`setup`: its layout is replaced as requests come in; `bounds`: `free` and `most` of `serve_step`."""
        self.host = jax.device_get(setup.decoder)  # once: it may hold weights
        self.setup, self.gen_length, self.key, self.meter = setup, gen_length, key, meter
        self.numbers = [np.asarray(number) for number in numbers_of(self.host)]
        room = setup.decoder.stop_strings
        self.strings = None if room is None else np.asarray(room.strings)
        self.bounds, self.widths = [np.asarray(bound, np.int32) for bound in bounds], widths
        self.words = jax.eval_shape(jax.random.key_data, key).shape
        self.room = setup.model.config.max_sequence_length - gen_length
        self.slots: list[_Slot | None] = []
        self.fresh: set[int] = set()
        self.kind = _Kind(0, 0, 0)
        self.state: State | None = None

    def serve(self, queue: Iterator[Request | Refusal | None], slots: int, devices: int) -> Iterator[Answer | Refusal]:
        """Fill the slots, run a serve step, hand out what is done, and again."""
        queue = (self._checked(item) for item in queue)
        ahead: list[Request | None] = []
        for item in queue:
            if isinstance(item, Refusal):
                yield item
                continue
            ahead.append(item)
            if item is None or len(ahead) == slots:
                rows = slots
                break
        else:
            rows = len(ahead)
        if not rows:  # all were refused
            return
        queue = itertools.chain(ahead, queue)
        self.slots = [None] * (-(-rows // devices) * devices)
        held: Request | Refusal | object | None = None
        while held is not END or any(self.slots):
            yield from self._give_up()
            while None in self.slots and held is not END:
                item, held = held or next(queue, END), None
                if isinstance(item, Refusal):
                    yield item
                elif item is END or (isinstance(item, Request) and not self._enter(item)):
                    held = item
                    break
                elif item is None:
                    break
            if any(self.slots):
                yield from self._serve_step()

    def _give_up(self) -> Iterator[Refusal]:
        """Free the slots of requests that nobody wants any longer."""
        for number, slot in enumerate(self.slots):
            if slot is not None and slot.request.given_up:
                self.slots[number] = None
                self.fresh.add(number)
                yield _unwanted(slot.request)

    def _checked(self, item: Request | Refusal | None) -> Request | Refusal | None:
        """The request, or its refusal with what `decode` would raise for it."""
        if not isinstance(item, Request):
            return item
        if item.given_up:
            return _unwanted(item)
        try:
            check_request(self.setup.model, item, self.gen_length, self.setup.decoder, self.key)
            check_context(self.setup.guide, len(item.ids) + self.gen_length)
        except InputError as error:
            return Refusal(item.number, item.id, str(error))
        return item

    def _enter(self, request: Request) -> bool:
        """Into a free slot, unless those in the others are of another kind."""
        length, model = len(request.ids), self.setup.model
        default = {"default": length} if request.is_canvas else {}
        block = checks.block_of(model, self.setup.decoder.block_length, **default)
        overhang = 0 if request.is_canvas else checks.overhang_of(model)
        kind = _Kind(length if request.is_canvas else self.gen_length, block, overhang)
        if kind != self.kind:
            if any(self.slots):
                return False
            self.kind, self.state = kind, None
        slot = self.slots.index(None)
        self.slots[slot] = _Slot(request, self.meter.seconds)
        self.fresh.add(slot)
        return True

    def _serve_step(self) -> Iterator[Answer]:
        present = [(number, slot) for number, slot in enumerate(self.slots) if slot is not None]
        prompts = [slot.request for _, slot in present if not slot.request.is_canvas]
        first = max((self._width(len(request.ids)) for request in prompts), default=0)
        incoming = self._incoming(first)
        self._fit(first, incoming)
        done = self.meter.call(serve_step, self.setup, self.state, incoming, *self.bounds, donate=(1,))
        self.state = done.state
        self.fresh.clear()
        result, live, settled, steps, busy = jax.device_get(
            (done.result, done.live, done.settled, done.steps, done.busy)
        )
        self.meter.count(int(steps), len(self.slots), int(busy))
        for number, slot in present:
            if not live[number]:
                self.slots[number] = None
                yield Answer(
                    request=slot.request,
                    tokens=result.tokens[number, first:].copy(),  # not a view that holds the whole batch
                    commit_step=result.commit_step[number].copy(),
                    log_prob=result.log_prob[number].copy(),
                    length=int(result.lengths[number]),
                    nfe=int(result.nfe[number]),
                    cheap=int(result.cheap[number]),
                    guide_nfe=int(result.guide_nfe[number]),
                    work=float(result.work[number]),
                    reason=int(result.reason[number]),
                    near_ties=int(result.near_ties[number]),
                    not_finite=int(result.not_finite[number]),
                    seconds=self.meter.seconds - slot.since,
                    log_weight=float(result.log_weight[number]),
                    checks=int(result.checks[number]),
                )
            elif slot.request.watch is not None:
                there = Partial(
                    request=slot.request,
                    tokens=result.tokens[number, first:].copy(),
                    commit_step=result.commit_step[number].copy(),
                    log_prob=result.log_prob[number].copy(),
                    settled=max(0, int(settled[number]) - first),
                    nfe=int(result.nfe[number]),
                )
                slot.request.watch(there)

    def _width(self, length: int) -> int:
        return next((width for width in self.widths if width >= length), bucket(length, self.room))

    def _incoming(self, first: int) -> Incoming:
        """The requests that are new in their slots, as arrays; the other rows, and those of slots that were given up,
        generate nothing.
        """
        rows, length = len(self.slots), first + self.kind.generated + self.kind.overhang
        canvas = np.full((rows, length), self.setup.model.config.mask_token_id, np.int32)
        reference = canvas.copy()
        origin, last, fresh = np.zeros(rows, np.int32), np.zeros(rows, np.int32), np.zeros(rows, bool)
        places, own, has_own = np.zeros(rows, np.int32), np.zeros((rows, *self.words), np.uint32), np.zeros(rows, bool)
        numbers = [np.full(rows, number, number.dtype) for number in self.numbers]
        room = self.setup.decoder.stop_strings
        strings = None if self.strings is None else np.stack([self.strings] * rows)
        for slot in self.fresh:
            fresh[slot] = True
            if (holder := self.slots[slot]) is None:
                continue
            request = holder.request
            end = first + (self.kind.generated if request.is_canvas else 0)
            origin[slot] = end - len(request.ids)
            canvas[slot, origin[slot] : end] = request.ids
            last[slot] = first + (request.max_tokens or self.kind.generated)
            places[slot], has_own[slot] = request.number, request.key is not None
            if room is not None and strings is not None and request.stop_strings is not None:
                strings[slot] = room.lines(request.stop_strings)
            if request.key is not None:
                own[slot] = jax.random.key_data(request.key)
            asked = self.numbers if request.decoder is None else numbers_of(request.decoder)
            for column, number in zip(numbers, asked, strict=True):
                column[slot] = number
            if request.reference is not None:
                reference[slot, first : first + len(request.reference)] = request.reference
        keys = _keys(self.key, places, own, has_own)
        given = reference if REFERENCE in self.setup.decoder.policy.needs else None
        values = (fresh, canvas, origin, last, given, strings, numbers)
        fresh, canvas, origin, last, given, strings, numbers = jax.device_put(values)
        return Incoming(fresh=fresh, rows=Rows(canvas, origin, last, keys, given, strings), numbers=tuple(numbers))

    def _fit(self, first: int, incoming: Incoming) -> None:
        """The layout of prompts that end at column `first`, and a state of that width."""
        kind, before = self.kind, self.setup.layout
        layout = layout_of(
            self.setup.model,
            self.setup.decoder,
            first=first,
            generated=kind.generated,
            block=kind.block,
            mesh=before.mesh,
            overhang=kind.overhang,
        )
        self.setup = dataclasses.replace(self.setup, layout=layout)
        if self.state is None:
            # Of host arrays alone: serve_step says where a state lies.
            decoder, guide = with_numbers(self.host, incoming.numbers), self.setup.guide
            guide = None if guide is None else dataclasses.replace(guide, params=())
            setup = dataclasses.replace(self.setup, params=(), decoder=decoder, guide=guide)
            self.state = self.meter.call(begin, setup, incoming.rows)
        elif layout != before:
            self.state = self.meter.call(repad, self.setup, before, self.state)


@jax.jit
def _keys(
    key: Key[Array, ""], numbers: Int[Array, " B"], own: UInt32[Array, "B words"], has_own: Bool[Array, " B"]
) -> Key[Array, " B"]:
    """Each request's own key, from its words, or the run's folded with its number."""
    words = jnp.where(has_own[:, None], own, jax.random.key_data(row_keys(key, numbers)))
    return jax.random.wrap_key_data(words, impl=jax.random.key_impl(key))
