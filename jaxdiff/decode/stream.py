"""`decode_stream`: a queue of requests through a fixed number of slots; answers come out as they are done.

    queue -> check -> slots -> turn (`slots.py`, one compiled program) -> answers
                ^ rows that are done are replaced before the next turn

Python sees turns, never steps. Requests of mixed lengths share the slots: a canvas is as wide as the longest prompt in
flight, in buckets that double, and is widened and narrowed by padding while rows are in it.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Int, Key

from jaxdiff.decode import api
from jaxdiff.decode.cache import Cache
from jaxdiff.decode.many import Timed, bucket
from jaxdiff.decode.slots import Incoming, blank, turn, widened
from jaxdiff.decode.state import Settings, State
from jaxdiff.parallel import check_axes, everywhere, place
from jaxdiff.policies import Fixed
from jaxdiff.types import Count, InputError, Leaf, Model, NeedsReference, Params, Policy, Stopper


@dataclasses.dataclass(frozen=True)
class Request:
    """What is to be decoded.

    Attributes:
        ids: a prompt, or, where `is_canvas`, a canvas whose [MASK] positions are to be filled.
        id: the caller's name for it; None: its number.
        number: its key is the run's, folded with this; -1: its place in the queue, from 0.
        reference: the tokens of its standard answer; the stream fills it in, for a policy that needs it.
    """

    ids: Any  # a sequence of int: checked when its turn comes, so that a bad one harms nobody
    id: Any = None
    number: int = -1
    is_canvas: bool = False
    reference: Int[np.ndarray, " G"] | None = None


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
    length: int
    nfe: int
    reason: int
    near_ties: int
    seconds: float


class Meter(Timed):
    """`Timed` for streams, with what the slots did so far.

    Attributes:
        steps: forwards of all slots together.
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


def decode_stream(
    model: Model,
    params: Params,
    requests: Iterable[Request | Sequence[int] | Int[np.ndarray, " P"]],
    *,
    slots: int = 8,
    policy: Policy | None = None,
    stop: Stopper | None = None,
    cache: Cache | None = None,
    gen_length: int = 256,
    block_length: int | None = None,
    temperature: Leaf = 0.0,
    top_p: Leaf | None = None,
    top_k: Count | None = None,
    cfg_scale: Leaf | None = None,
    key: Key[Array, ""] | Key[Array, " n"] | None = None,
    forbid_eos: bool = False,
    defer_eos: bool = False,
    mesh: Mesh | None = None,
    free: int = 1,
    meter: Meter | None = None,
) -> Iterator[Answer | Refusal]:
    """Decode a queue of requests, `slots` at a time; yields each answer when it is there.

    An answer is what `decode` (or, for a canvas, `infill`) gives for that request alone, with the key
    `fold_in(key, number)`: the same tokens, NFE and commit trace, whatever the slots and the order of the queue. The
    queue is read as slots become free, so it may be endless; host memory does not grow with it. A canvas that is not as
    long as what the slots generate waits until they are empty, and the queue behind it too: give those of one length
    together.

    Args:
        requests: `Request`s, or bare prompts.
        slots: rows that are decoded at a time; fewer where the queue is shorter, and a multiple of a mesh's data
            devices. A forward costs as much as all slots.
        block_length: in tokens; None: that of `decode` for prompts, of `infill` for canvases.
        temperature, top_p, top_k, cfg_scale, and the numbers of the policy, stopper and cache: one for all requests.
        free: rows that must be done before the compiled loop is left to look at the queue.
        meter: told of time and of the slots' work, and keeps the compiled programs: give the same one again, and
            nothing is compiled twice.
        others: as in `decode`.

    Yields, in no order, an `Answer` or a `Refusal` for each request: a bad one is refused when its turn comes, with
    its id, and the others go on.

    Raises InputError now, before compilation, for what cannot serve any request: slots, lengths, a number for each
    row, a policy that refuses the block or that keeps a state of the canvas' length.
    """
    if slots < 1 or free < 1:
        raise InputError(f"slots, free: found {slots}, {free}, expected at least 1 of each")
    policy = policy or Fixed()
    shared = {"temperature": temperature, "top_p": top_p, "top_k": top_k, "cfg_scale": cfg_scale}
    for name, value in (*shared.items(), *_numbers((policy, stop, cache))):
        if value is not None and np.ndim(value):
            raise InputError(f"{name}: found a value for each row, expected one for all; a stream has slots, not rows")
    block = api.block_of(model, block_length)
    api.check_lengths(model, 0, gen_length, block)
    ways = (model, policy, stop, cache, temperature, cfg_scale, forbid_eos, defer_eos, mesh)
    settle = functools.partial(api._settings, *ways, top_p=top_p, top_k=top_k, rows=1)
    settle(first=0, generated=gen_length, block=block)
    devices = 1
    if mesh is not None:
        check_axes(mesh)
        params, devices = place(model.config, params, mesh), mesh.shape["data"]
    jax.eval_shape(lambda: _bound(policy, (1, gen_length)).init(1, block))
    key = jax.random.key(0) if key is None else key
    if api._keys(key, getattr(key, "size", 1)).size > 1:
        raise InputError(f"key: found {key.size} of them, expected one; request i draws from fold_in(key, i)")
    meter = Meter() if meter is None else meter
    if needs_reference(policy):
        if _states(policy, block, gen_length) != _states(policy, block, gen_length + block):
            raise InputError("policy: keeps a state of the canvas' length, expected one of any; use decode for it")
        standard = decode_stream(
            *(model, params, requests),
            slots=slots,
            stop=stop,
            gen_length=gen_length,
            block_length=block_length,
            key=key,
            **shared,
            forbid_eos=forbid_eos,
            defer_eos=defer_eos,
            mesh=mesh,
            free=free,
            meter=meter.beside(),
        )
        requests = map(_with_reference, standard)  # type: ignore[assignment]
    engine = _Engine(model, params, settle, gen_length, block_length, key, free, meter)
    return engine.serve(_numbered(requests), slots, devices)


def needs_reference(policy: Policy) -> bool:
    return isinstance(policy, NeedsReference) and policy.lacks_reference


def _with_reference(answer: Answer | Refusal) -> Request | Refusal:
    return answer if isinstance(answer, Refusal) else dataclasses.replace(answer.request, reference=answer.tokens)


def _bound(policy: Policy, shape: tuple[int, ...]) -> Policy:
    """`policy`, for its shapes alone."""
    return policy.bind(jnp.zeros(shape, jnp.int32)) if needs_reference(policy) else policy  # type: ignore[attr-defined]


def _states(policy: Policy, block: int, length: int) -> Any:
    return jax.eval_shape(lambda: _bound(policy, (1, length)).init(1, block))


def _numbers(part: Any) -> Iterator[tuple[str, Any]]:
    """The numbers and the reference of a policy or stopper and of its parts, by name."""
    if isinstance(part, tuple):
        yield from itertools.chain.from_iterable(map(_numbers, part))
    elif dataclasses.is_dataclass(part):
        for field in dataclasses.fields(part):
            value = getattr(part, field.name)
            if "low" in field.metadata or field.name == "reference":
                yield field.name, value
            else:
                yield from _numbers(value)


def _numbered(requests: Iterable[Any]) -> Iterator[Request | Refusal]:
    for turn_of, item in enumerate(requests):
        if isinstance(item, Refusal):
            yield item
            continue
        request = item if isinstance(item, Request) else Request(item)
        number = turn_of if request.number == -1 else request.number
        yield dataclasses.replace(request, number=number, id=number if request.id is None else request.id)


class _Engine:
    """The slots on the host: who is in them since when, how wide the canvas is, and the state on the device."""

    def __init__(
        self,
        model: Model,
        params: Params,
        settle: Callable[..., Settings],
        gen_length: int,
        block_length: int | None,
        key: Key[Array, ""],
        free: int,
        meter: Meter,
    ) -> None:
        self.model, self.params, self.settle, self.key, self.meter = model, params, settle, key, meter
        self.gen_length, self.block_length = gen_length, block_length
        self.free = jnp.asarray(free, jnp.int32)
        self.room = model.config.max_sequence_length - gen_length
        self.rows: list[tuple[Request, float] | None] = []  # who is in a slot, and since which second
        self.fresh: set[int] = set()
        self.kind = (0, 0, 0)  # of those in the slots: what each generates, in which blocks, and their overhang
        self.first = 0  # where blocks begin, in `state`
        self.state: State | None = None
        self.settings: dict[tuple[int, int, int, int], Settings] = {}

    def serve(self, queue: Iterator[Request | Refusal], slots: int, devices: int) -> Iterator[Answer | Refusal]:
        """Fill the slots, run a turn, hand out what is done, and again."""
        queue = (self._checked(item) for item in queue)
        ahead: list[Request] = []
        for item in queue:
            if isinstance(item, Refusal):
                yield item
            else:
                ahead.append(item)
            if len(ahead) == slots:
                break
        queue = itertools.chain(ahead, queue)
        self.rows = [None] * (-(-len(ahead) // devices) * devices)
        held: Request | Refusal | None = None
        while True:
            while None in self.rows and (item := held or next(queue, None)) is not None:
                held = None
                if isinstance(item, Refusal):
                    yield item
                elif not self._enter(item):
                    held = item
                    break
            if not any(self.rows):
                return
            yield from self._turn()

    def _checked(self, item: Request | Refusal) -> Request | Refusal:
        """The request, or its refusal with what `decode` would raise for it."""
        if isinstance(item, Refusal):
            return item
        try:
            check(self.model, item, self.gen_length, self.block_length)
        except InputError as error:
            return Refusal(item.number, item.id, str(error))
        return item

    def _enter(self, request: Request) -> bool:
        """Into a free slot, unless those in the others are of another kind."""
        generated = len(request.ids) if request.is_canvas else self.gen_length
        block = api.block_of(
            self.model, self.block_length, default=generated if request.is_canvas else api.BLOCK_LENGTH
        )
        kind = (generated, block, 0 if request.is_canvas else api.overhang_of(self.model))
        if kind != self.kind:
            if any(self.rows):
                return False
            self.kind, self.state = kind, None
        slot = self.rows.index(None)
        self.rows[slot] = (request, self.meter.seconds)
        self.fresh.add(slot)
        return True

    def _turn(self) -> Iterator[Answer]:
        generated, _, overhang = self.kind
        present = [(slot, row[0]) for slot, row in enumerate(self.rows) if row is not None]
        first = max(0 if request.is_canvas else bucket(len(request.ids), self.room) for _, request in present)
        length = first + generated + overhang
        self._fit(first, length)
        canvas = np.full((len(self.rows), length), self.model.config.mask_token_id, np.int32)
        origin, number = (np.zeros(len(self.rows), np.int32) for _ in range(2))
        fresh = np.zeros(len(self.rows), bool)
        for slot, request in present:
            if slot in self.fresh:
                end = first + generated if request.is_canvas else first
                fresh[slot], number[slot], origin[slot] = True, request.number, end - len(request.ids)
                canvas[slot, origin[slot] : end] = request.ids
        incoming = Incoming(*map(jnp.asarray, (fresh, canvas, origin, number)))
        settings = self._settings(first, length, present)
        arguments = (self.params, settings, self.state, incoming, self.key, self.free)
        after = self.meter.call(turn, (self.model,), *arguments, donate=(2,))
        self.state = after.state
        self.fresh.clear()
        result, live, steps, busy = jax.device_get((after.result, after.live, after.steps, after.busy))
        self.meter.count(int(steps), len(self.rows), int(busy))
        for slot, request in present:
            if not live[slot]:
                since, self.rows[slot] = self.rows[slot][1], None  # type: ignore[index]
                yield Answer(
                    request=request,
                    tokens=result.tokens[slot, first:].copy(),  # not a view that holds the whole batch
                    commit_step=result.commit_step[slot].copy(),
                    length=int(result.lengths[slot]),
                    nfe=int(result.nfe[slot]),
                    reason=int(result.reason[slot]),
                    near_ties=int(result.near_ties[slot]),
                    seconds=self.meter.seconds - since,
                )

    def _fit(self, first: int, length: int) -> None:
        """A state of that width."""
        if self.state is None:
            static = (self.model, len(self.rows), length)
            self.state = self.meter.call(blank, static, self._settings(first, length, []))
        elif first != self.first:
            self.state = self.meter.call(widened, (self.model, first - self.first), self.state)
        self.first = first

    def _settings(self, first: int, length: int, present: list[tuple[int, Request]]) -> Settings:
        generated, block, overhang = self.kind
        shape = (first, *self.kind)
        if shape not in self.settings:
            made = self.settle(first=first, generated=generated, block=block, overhang=overhang)
            self.settings[shape] = made if made.mesh is None else everywhere(made, made.mesh)
        settings = self.settings[shape]
        if not needs_reference(settings.policy):
            return settings
        reference = np.zeros((len(self.rows), length - overhang), np.int32)
        for slot, request in present:
            reference[slot, first:] = np.asarray(request.reference)
        return dataclasses.replace(settings, policy=settings.policy.bind(jnp.asarray(reference)))  # type: ignore[attr-defined]


def check(model: Model, request: Request, gen_length: int, block_length: int | None) -> None:
    """Raises the InputError that `decode` or `infill` would raise for this request."""
    try:
        ids = np.asarray([request.ids])
    except ValueError:
        ids = np.zeros(0)
    if ids.ndim != 2 or (ids.size and ids.dtype.kind not in "iuO"):
        raise InputError(f"ids: found {request.ids!r:.80}, expected a list of whole numbers")
    if not ids.size:
        raise InputError("prompt: found no ids, expected at least one")
    if not 0 <= request.number < 2**31:
        raise InputError(f"number: found {request.number}, expected 0 to 2**31 - 1")
    length = len(request.ids)
    if request.is_canvas:
        block = api.block_of(model, block_length, default=length)
        if length % block:
            raise InputError(f"canvas_ids: found {length} ids in blocks of {block}, expected whole blocks")
        api.check_lengths(model, 0, length, block)
    else:
        api.check_lengths(model, length, gen_length, api.block_of(model, block_length))
    api.check_ids(model, ids, np.zeros(1, np.int32), masks_allowed=request.is_canvas)
