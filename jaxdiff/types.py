"""The words of the house: shape letters, what a policy sees and answers, and the protocols.

Shape letters, used in every public docstring and annotation:

    B rows (requests)      P prompt length          L canvas length (prompt + generated)
    G generated length     W window (the block)     T tokens fed to the model
    D hidden size          V vocabulary             N layers
    H query heads          K key/value heads        E head size
    r tokens read of T

Everything here is plain data: policies import this module and nothing else of the package.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, Protocol, TypeVar, dataclass_transform, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, Shaped

NEAR_TIE = 1e-5  # log-odds: below this gap, float rounding decides
Params = Any  # a pytree of arrays, or of arrays and `qwix.QArray`s (`weights.py`)
Memory = Any  # a model's keys and values: for each group of layers a pair of [N B K L E]
State = Any  # a policy's or stopper's own pytree; () when it keeps none
# One number for the batch, or one for each row; `number()` fields turn Python's into arrays.
Leaf = Float[Array, ""] | Float[Array, " B"] | float | int | np.ndarray | Sequence[float]
Count = Int[Array, ""] | Int[Array, " B"] | int | np.ndarray | Sequence[int]

_T = TypeVar("_T")


class InputError(ValueError):
    """The caller's input cannot be used: one line that says what, found, expected and the mend."""


def static(*, default: Any = dataclasses.MISSING) -> Any:
    """A dataclass field that is compiled into the program (shapes, names, callables)."""
    return dataclasses.field(default=default, metadata={"static": True})


def number(*, default: Any = dataclasses.MISSING, low: float | int, high: float | int, whole: bool = False) -> Any:
    """A dataclass field that is a traced number within [low, high]: one value, or one for each row [B].

    A new value does not recompile, and a [B] vector sweeps B values as the rows of one program.
    """
    return dataclasses.field(default=default, metadata={"low": low, "high": high, "whole": whole})


def each_row(*, default: Any = dataclasses.MISSING) -> Any:
    """A dataclass field whose arrays lead with B, or have no axis: over a mesh, each device has its own rows of it.

    So are `number()` fields; all other arrays of a policy (weights) are whole on every device.
    """
    return dataclasses.field(default=default, metadata={"rows": True})


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field, static, number, each_row))
def pytree(cls: type[_T]) -> type[_T]:
    """Frozen dataclass registered as a pytree; fields made with `static()` are part of the treedef.

    Fields made with `number()` become array leaves, whatever they are given as.
    """
    numbers = {k: v.metadata for k, v in vars(cls).items() if isinstance(v, dataclasses.Field) and "low" in v.metadata}
    if numbers:

        def canonicalise(self: Any) -> None:
            for name, limits in numbers.items():
                if getattr(self, name) is not None:  # an option that is off is not compiled
                    object.__setattr__(self, name, _leaf(name, getattr(self, name), **limits))

        cls.__post_init__ = canonicalise  # type: ignore[attr-defined]
    cls = dataclasses.dataclass(frozen=True)(cls)
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    leaves = [f.name for f in fields if not f.metadata.get("static")]
    statics = [f.name for f in fields if f.metadata.get("static")]

    def flatten(self: Any) -> tuple[list[tuple[Any, Any]], tuple[Any, ...]]:
        children = [(jax.tree_util.GetAttrKey(name), getattr(self, name)) for name in leaves]
        return children, tuple(getattr(self, name) for name in statics)

    def unflatten(values: tuple[Any, ...], children: Iterable[Any]) -> Any:
        self = object.__new__(cls)  # not through __init__: JAX also builds trees of placeholders, which are no arrays
        for name, value in (*zip(leaves, children, strict=True), *zip(statics, values, strict=True)):
            object.__setattr__(self, name, value)
        return self

    jax.tree_util.register_pytree_with_keys(cls, flatten, unflatten)
    return cls


def _leaf(name: str, value: Any, *, low: float | int, high: float | int, whole: bool) -> Any:
    """`value` as an array (a Python float would cost one more trace: weak type); checked unless it is traced."""
    if isinstance(value, jax.core.Tracer):
        return value
    array = np.asarray(value)
    if array.ndim > 1 or not np.all((array >= low) & (array <= high)) or (whole and np.any(array % 1)):
        kind = "a whole number" if whole else "a number"
        raise InputError(f"{name}: found {value}, expected {kind} from {low:g} to {high:g}, or a vector of them")
    return jnp.asarray(array, jnp.int32 if whole else jnp.float32)


def fields_of(cls: type) -> dict[str, Any]:
    """The `static()` and `number()` fields of a class, by name: what says how their text is read."""
    written = {"static", "low"}  # a reference cannot be
    return {f.name: f.metadata for f in dataclasses.fields(cls) if written & f.metadata.keys()}


def parse_fields(what: str, fields: dict[str, Any], text: str) -> dict[str, Any]:
    """The values that a command line's `k=v,...` gives to some of the fields.

    Raises InputError, with the fields that there are, for another one, and for a number that is none.
    """
    values: dict[str, Any] = {}
    for item in filter(None, text.split(",")):
        name, equals, value = item.partition("=")
        if name not in fields or not equals:
            known = ", ".join(f"{k}=" for k in fields) or "none"
            raise InputError(f"{what}: found argument {item!r}, expected {known}")
        kind = fields[name]
        values[name] = value if kind.get("static") else parse_number(f"{what} {name}", value, whole=kind["whole"])
    return values


def parse_number(what: str, text: str, *, whole: bool) -> float | int:
    """The number that a command line gives. Raises InputError for another text."""
    try:
        return int(text) if whole else float(text)
    except ValueError:
        kind = "a whole number" if whole else "a number"
        raise InputError(f"{what}: found {text!r}, expected {kind}") from None


def per_row(value: Leaf | Count) -> Shaped[Array, ...]:
    """`value` shaped to broadcast against [B, W]: a scalar stays, a [B] vector becomes [B, 1]."""
    value = jnp.asarray(value)
    return value if value.ndim == 0 else value[:, None]


@pytree
class Score:
    """What every policy sees: the model's belief at each position of the block.

    Fields are [B, W] and float32 unless said. `token` is the candidate (the argmax, or the Gumbel sample at
    temperature > 0) and never [MASK]. `log_odds` = its logit minus the logsumexp of all others: RANK by it,
    since float32 probabilities near 1 tie; compare `prob` with thresholds. A field no policy reads is dead
    code to the compiler.
    """

    token: Int[Array, "B W"]
    prob: Float[Array, "B W"]  # softmax(logits)[token]
    log_odds: Float[Array, "B W"]
    runner_up: Float[Array, "B W"]  # probability of the best token other than `token`
    entropy: Float[Array, "B W"]  # nats, of the whole distribution
    gap: Float[Array, "B W"]  # logits between the candidate and the next best: a tie-break under 1e-5
    hidden: Float[Array, "B W D"]  # the features that the head read, in the model's dtype
    masked: Bool[Array, "B W"]  # still [MASK]
    eligible: Bool[Array, "B W"]  # masked, in the row's block, before its end, in a live row: may be committed
    canvas: Int[Array, "B L"]
    start: Int[Array, " B"]  # canvas column of the block's first position
    origin: Int[Array, " B"]  # canvas column of the row's first token: absolute position = column - origin
    block_step: Int[Array, " B"]  # forwards this block has had before this one
    row_step: Int[Array, " B"]  # forwards this row has had before this one

    @property
    def margin(self) -> Float[Array, "B W"]:
        """Prob - runner_up. Compare it with thresholds; rank by `certainty`."""
        return self.prob - self.runner_up

    @property
    def certainty(self) -> Float[Array, "B W"]:
        """-log(1 - margin) without the cancellation near margin 1: the float32-safe order of margins."""
        return -jnp.log(jnp.maximum(jax.nn.sigmoid(-self.log_odds) + self.runner_up, 1e-30))

    @property
    def sharpness(self) -> Float[Array, "B W"]:
        """-log(entropy): the order of entropies, lowest first, on the scale of log-odds; last is what is put off."""
        nats = -jnp.log(jnp.maximum(self.entropy, jnp.finfo(jnp.float32).tiny))
        return jnp.where(self.entropy < 1e6, nats, -self.entropy)  # no vocabulary has so much


@pytree
class Proposal:
    """What a policy answers, [B, W]. The loop commits `commit` (where eligible) and, in a row where that is
    empty, forces the position of highest `priority` unless the policy `waits`.
    """

    commit: Bool[Array, "B W"]
    accepted: Bool[Array, "B W"]  # what the policy itself vouches for, before any quota
    close: Bool[Array, "B W"]  # a comparison with a number of the policy's own hung on less than NEAR_TIE
    priority: Float[Array, "B W"]
    token: Int[Array, "B W"]


@runtime_checkable
class Policy(Protocol):
    """Which masked positions commit now. A frozen pytree: numbers are traced leaves, the rest is static.

    `waits` (static) is True for a schedule that may leave a row untouched in a step and proves its own bound.
    """

    @property
    def waits(self) -> bool: ...

    def init(self, rows: int, window: int) -> State:
        """The state before the first step, for `rows` = B and `window` = W."""
        ...

    def select(self, state: State, score: Score, key: Key[Array, " B"]) -> tuple[Proposal, State]:
        """One decision. `key` is the row's own, fresh for this step."""
        ...


@runtime_checkable
class NeedsReference(Protocol):
    """A policy that may be given the answer of the standard decode, one token a step (`Oracle`, and what holds one)."""

    @property
    def lacks_reference(self) -> bool: ...

    def bind(self, reference: Int[Array, "B L"]) -> Policy:
        """The policy with the reference, a canvas, wherever it lacks one."""
        ...


@pytree
class Tail:
    """What a stopper that asks is told of the whole canvas: where end-of-text is the candidate, and how surely."""

    ends: Bool[Array, "B L"]  # still masked before the commit, and the candidate is end-of-text
    log_odds: Float[Array, "B L"]  # of those; elsewhere lower than any


@pytree
class Progress:
    """What a stopper sees after a commit. `end` is one past the last position that a row still generates."""

    canvas: Int[Array, "B L"]
    end: Int[Array, " B"]
    live: Bool[Array, " B"]
    generated: Bool[Array, "B L"]  # the positions this call is to fill (False on the prompt and the padding)
    score: Score  # of the block, before the commit
    accepted: Bool[Array, "B W"]  # what the policy vouched for, among the eligible
    tail: Tail | None  # where the stopper `wants_tail`
    mask_id: int = static()
    eos_ids: tuple[int, ...] = static()


@runtime_checkable
class Stopper(Protocol):
    """When a row's end moves left (it never moves right).

    `wants_tail` (static): the head is to run over the whole canvas, so that `Progress.tail` is there. `cuts` (static):
    ends move left of masks, so that shorter forwards are worth compiling.
    """

    @property
    def wants_tail(self) -> bool: ...

    @property
    def cuts(self) -> bool: ...

    def init(self, rows: int) -> State: ...

    def update(self, state: State, progress: Progress) -> tuple[Int[Array, " B"], State]:
        """The new end of each row, [B]; the loop takes the minimum of it and the old one."""
        ...


@pytree
class Window:
    """Where the tokens of a forward over a memory stand, and which of them the memory learns.

    Attributes:
        start: canvas column of each row's first token, 0 to L - T (not checked).
        fresh: the token's own keys and values are seen, and written; elsewhere the memory's stand, unseen and unchanged
            by what was computed.
        kept: a later forward may look at what was written. Else it may be left unwritten.
    """

    start: Int[Array, " B"]
    fresh: Bool[Array, "B T"]
    kept: bool = static(default=True)


@pytree
class Span:
    """The tokens of a forward whose features are wanted: `count` of them from each row's `start` on."""

    start: Int[Array, " B"]
    count: int = static()


@runtime_checkable
class Model(Protocol):
    """A static, hashable definition whose methods are pure functions of a params pytree."""

    @property
    def config(self) -> Any: ...

    @property
    def attention_block(self) -> int | None:
        """Positions of a block that sees itself and what lies left of it; None: every position sees all."""
        ...

    @property
    def shifted(self) -> bool:
        """The network reads token i at position i - 1. `features` undoes it: who feeds a window must know."""
        ...

    @property
    def tempered(self) -> bool:
        """The published sampler's confidences are those of softmax(logits / temperature), not of softmax(logits)."""
        ...

    def init(self, key: Key[Array, ""]) -> Params: ...

    def features(
        self, params: Params, tokens: Int[Array, "B T"], positions: Int[Array, "B T"], valid: Bool[Array, "B T"]
    ) -> Float[Array, "B T D"]:
        """Row i predicts token i (shifted families shift here). `valid` False: padding, attended by nobody."""
        ...

    def head(self, params: Params) -> Float[Any, "D V"]: ...


@runtime_checkable
class Remembering(Model, Protocol):
    """A model whose keys and values a cache can keep, and which may hide the answer from the prompt."""

    def features(
        self,
        params: Params,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"],
        valid: Bool[Array, "B T"],
        prompt: Int[Array, " B"] | None = None,
        read: Span | None = None,
    ) -> Float[Array, "B r D"]:
        """Row i predicts token i (shifted families shift here). `valid` False: padding, attended by nobody.

        `prompt`: how many first positions do not see the others, in a model whose config says `prefix_lm`. `read`: the
        only tokens whose features are wanted, r = read.count; None is all of them.
        """
        ...

    def recall(
        self,
        params: Params,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B L"],
        valid: Bool[Array, "B L"],
        window: Window,
        memory: Memory,
        prompt: Int[Array, " B"] | None = None,
        read: Span | None = None,
    ) -> tuple[Float[Array, "B r D"], Memory]:
        """`features` of a window over a memory, and the memory with the window written over; `features` is T = L.

        The memory may have more columns than L. A window that is not `kept` may be written or not. `read` counts from
        the window's first token; what is written is the whole window. A shifted model's first row has nothing to read
        from unless it is the canvas' own.
        """
        ...

    def memory(self, rows: int, length: int) -> Memory:
        """Room for the keys and values of `rows` canvases."""
        ...
