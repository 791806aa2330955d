"""What every family's config holds, and how one is read from a published `config.json` or from our own.

Every key of a config.json is of one kind (`Config.kind_of`): used, required to have one value, harmless, or unknown.
An unknown key is refused, since it may ask for a computation that the family's code does not do.
"""

from __future__ import annotations

import dataclasses
import reprlib
import shlex
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from jaxdiff.models.keys import ABSENT, HARMLESS
from jaxdiff.models.positions import ROPE, without_rope
from jaxdiff.types import InputError

_NAMING = ("family", "architectures")  # read by `family_of`
MOST = 2**31 - 1  # of sizes and ids: they are int32 in a program
# What a field of each type may be, and its range where the class gives none.
_KINDS: Mapping[str, tuple[Any, str]] = {
    "int": (int, "a whole number"),
    "int | None": (int, "a whole number"),
    "float": ((int, float), "a number"),
    "bool": (bool, "true or false"),
    "str": (str, "a name"),
}
_RANGES = {"int": (1, MOST), "int | None": (0, MOST), "float": (1e-30, 1e30)}
# Qwen's sliding window, which `use_sliding_window` turns on and the families require to be off.
SLIDING_WINDOW = frozenset({"sliding_window", "max_window_layers"})


@dataclasses.dataclass(frozen=True, repr=False)
class Each:
    """A required value of a key that says it layer by layer, or once for all layers."""

    value: Any

    def __repr__(self) -> str:
        return f"{self.value!r} in every layer"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Shapes, special ids and dtype. Families add their own fields, and say what they require and what they publish.

    Attributes:
        head_dim: E; 0 means d_model / n_heads.
        eot_token_id: a chat turn's end, where the family has one beside `eos`.
        further_eos_token_ids: what else ends an answer: the rest of a published file's list of `eos_token_id`. The
            first of it is `eot_token_id` as well, where no other is named.
        dtype: of the computation, bfloat16 or float32.
        prefix_lm: the prompt does not see the answer, so that its keys and values never change.
    """

    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    mlp_hidden_size: int
    mask_token_id: int
    eos_token_id: int
    eot_token_id: int | None = None
    further_eos_token_ids: tuple[int, ...] = ()
    head_dim: int = 0
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-6
    max_sequence_length: int = 4096
    dtype: str = "bfloat16"
    prefix_lm: bool = False

    # The least and the most of fields whose range is not that of their type.
    ranges: ClassVar[Mapping[str, tuple[float | int, float | int]]] = {
        "mask_token_id": (0, MOST),
        "eos_token_id": (0, MOST),
        "head_dim": (0, MOST),
        "rms_norm_eps": (1e-30, 1.0),
    }
    # What a family's code does whatever config.json says (beside `ABSENT`): another value is refused. A switch that is
    # off may be null.
    required: ClassVar[Mapping[str, Any]] = {}
    renamed: ClassVar[Mapping[str, str]] = {}  # published names -> ours
    # Published keys that repeat an attribute or property of the config: another value is refused.
    repeated: ClassVar[Mapping[str, str]] = {}
    # Beside `HARMLESS`: keys of this family alone that change neither a forward's numbers nor an answer's end.
    harmless: ClassVar[frozenset[str]] = frozenset()
    # Keys of another model that publishes under this family's architecture, each with what that model is.
    of_others: ClassVar[Mapping[str, str]] = {}
    # What a file means by its `architectures` alone, where a family has several: fields of ours, for each of them.
    by_architecture: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    # Special ids that published files lack: used where the vocabulary is of the published size.
    published: ClassVar[tuple[int, Mapping[str, int]]] = (0, {})
    # What training reads alone, where the published class has other defaults than the published models.
    training: ClassVar[Mapping[str, Any]] = {}
    tied: ClassVar[bool] = False  # the head is the embedding, transposed
    qkv_bias: ClassVar[bool] = False  # the projections of queries, keys and values have biases
    qk_norm: ClassVar[bool] = False  # queries and keys are normalised head by head
    mask_may_lack: ClassVar[bool] = False  # the vocabulary may have no [MASK]: `mask_token_id` is then its size

    def __post_init__(self) -> None:
        """Raises InputError, which names the field, for values of another type, out of range, or that make no model."""
        for name, field in self._fields().items():
            _check_value(name, getattr(self, name), str(field.type), self.ranges.get(name))
        self._check_heads()
        if self.dtype not in ("bfloat16", "float32"):
            raise InputError(f"dtype: found {self.dtype!r}, expected bfloat16 or float32")
        if self.attention_block is not None and self.attention_block > self.max_sequence_length:
            raise InputError(
                f"attention_block: found {self.attention_block}, expected at most the context of "
                f"{self.max_sequence_length}"
            )
        self._order_ends()
        for name in ("mask_token_id", "eos_token_id", "eot_token_id", "further_eos_token_ids"):
            found = getattr(self, name)
            most = self.vocab_size + int(self.mask_may_lack and name == "mask_token_id")
            for token in found if isinstance(found, tuple) else (found,):
                if token is not None and token >= most:
                    raise InputError(f"{name}: found {token}, expected an id under vocab_size {self.vocab_size}")
                if name != "mask_token_id" and token == self.mask_token_id:
                    raise InputError(
                        f"{name}: found {token}, which is mask_token_id too, expected another: [MASK] is never "
                        "predicted, so no answer would end; correct the wrong one"
                    )

    def _check_heads(self) -> None:
        """Sets `head_dim` where it follows from the width. Raises InputError for heads that make no attention."""
        if not self.head_dim and self.d_model % self.n_heads == 0:
            object.__setattr__(self, "head_dim", self.d_model // self.n_heads)
        if not self.head_dim or self.head_dim % 2:
            raise InputError(
                f"d_model: found {self.d_model} with {self.n_heads} heads, expected an even multiple of the heads"
            )
        if self.n_heads % self.n_kv_heads:
            raise InputError(f"n_kv_heads: found {self.n_kv_heads}, expected a divisor of n_heads = {self.n_heads}")
        if self.rotary_dim < 2 or self.rotary_dim % 2 or self.rotary_dim > self.head_dim:
            raise InputError(
                f"rotary_dim: found {self.rotary_dim} for heads of {self.head_dim}, expected an even number up to that"
            )

    def _order_ends(self) -> None:
        """Further ids once each, without end-of-text; the first is the end of a turn where that is not named."""
        further = tuple(token for token in dict.fromkeys(self.further_eos_token_ids) if token != self.eos_token_id)
        object.__setattr__(self, "further_eos_token_ids", further)
        if self.eot_token_id is None and further:
            object.__setattr__(self, "eot_token_id", further[0])

    @property
    def rotary_dim(self) -> int:
        """Dimensions of a head that rotary positions rotate."""
        return self.head_dim

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """The ids that end an answer, each once: end-of-text, the end of a turn where there is one, any others."""
        named = () if self.eot_token_id is None else (self.eot_token_id,)
        return tuple(dict.fromkeys((self.eos_token_id, *named, *self.further_eos_token_ids)))

    @property
    def turn_ends(self) -> tuple[int, ...]:
        """Those of `eos_ids` that only end a turn: `eotp` does not foresee them, for end-of-text fills what follows."""
        listed = (self.eos_token_id, *self.further_eos_token_ids)
        return tuple(token for token in self.eos_ids if token not in listed)

    @property
    def has_mask(self) -> bool:
        """Whether [MASK] is a token of the vocabulary."""
        return self.mask_token_id < self.vocab_size

    @property
    def embedding_rows(self) -> int:
        """Rows of the embedding, and columns of the head: the vocabulary, and what a file holds past it."""
        return self.vocab_size

    @property
    def rope_dtype(self) -> str:
        """Of the cosines and sines of rotary positions."""
        return self.dtype

    @property
    def attention_block(self) -> int | None:
        """As `jaxdiff.protocols.Model.attention_block`."""
        return None

    @property
    def output_scale(self) -> float:
        """Of the initial kernels that write to the residual stream: there are two of them in each layer."""
        return 1.0 / (2 * self.n_layers)

    @classmethod
    def kind_of(cls, key: str) -> str | None:
        """What a key of config.json is to this family: "used", "required", "harmless", or None for an unknown one."""
        if key in cls._fields() or any(key in names for names in (cls.renamed, cls.repeated, ROPE, _NAMING)):
            return "used"
        if key in cls.required or key in ABSENT:
            return "required"
        return "harmless" if key in HARMLESS or key in cls.harmless else None

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], *, ignore: Iterable[str] = ()) -> Config:
        """From the contents of a config.json, in the published names or in ours.

        A null value is as none, except where the family requires a feature that null turns off.

        Args:
            ignore: unknown keys that are to be left alone. Known keys cannot be ignored: what the family uses or
                requires is what its code does.

        Raises InputError, in one line, for a file that lacks a shape, contradicts itself, asks for a feature that this
        code does not have, or holds keys of unknown meaning; and where `ignore` names a key that the family reads.
        """
        raw = without_rope(raw)
        cls._check_known(raw, {ignore} if isinstance(ignore, str) else set(ignore))
        values = cls._values(raw)
        for name, value in cls.by_architecture.get(architecture_of(raw), {}).items():
            values.setdefault(name, value)
        size, ids = cls.published
        if values.get("vocab_size") == size:
            for name, token in ids.items():
                values.setdefault(name, token)
        missing = [k for k, f in cls._fields().items() if f.default is dataclasses.MISSING and k not in values]
        if missing:
            raise InputError(f"config.json: missing {', '.join(missing)}; add the key or name another folder")
        config = cls(**values)
        for key, name in cls.repeated.items():
            if raw.get(key) not in (None, getattr(config, name)):
                raise InputError(f"config.json {key}: found {raw[key]!r}, expected {getattr(config, name)!r} as {name}")
        return config

    @classmethod
    def _fields(cls) -> dict[str, dataclasses.Field[Any]]:
        return {f.name: f for f in dataclasses.fields(cls)}

    @classmethod
    def _check_known(cls, raw: Mapping[str, Any], ignore: set[str]) -> None:
        """Raises InputError for a value other than the required one, and for keys neither known nor ignored."""
        unknown = {}
        for key, found in raw.items():
            kind = cls.kind_of(key)
            if key in ignore and kind in ("used", "required"):
                raise InputError(f"ignore: found {key!r}, which {cls.__name__} reads, expected keys that it does not")
            if kind == "required" and not _fits(found, wanted := {**ABSENT, **cls.required}[key]):
                raise InputError(f"config.json {key}: found {found!r}, expected {wanted!r}")
            if kind is None and found is not None and key not in ignore:
                unknown[key] = found
        if unknown:
            shown = {key if key.isprintable() else ascii(key): value for key, value in unknown.items()}
            found = ", ".join(f"{key}: found {reprlib.repr(value)}" for key, value in shown.items())
            options = " ".join(f"--ignore-config {shlex.quote(key)}" for key in shown)
            others = "".join(f" (this is {what})" for what in dict.fromkeys(map(cls.of_others.get, unknown)) if what)
            raise InputError(
                f"config.json {found}, expected keys that {cls.__name__} knows{others}; where the model's numbers do "
                f"not hang on them, load(ignore={tuple(unknown)!r}) or {options}"
            )

    @classmethod
    def _values(cls, raw: Mapping[str, Any]) -> dict[str, Any]:
        """The fields that a config.json gives, by our names. Raises InputError where it gives one two values."""
        known, given = cls._fields(), {}
        values: dict[str, Any] = {}
        for key, value in _without_lists(raw).items():
            name = cls.renamed.get(key, key)
            if name not in known or value is None:
                continue
            _check_value(key, value, str(known[name].type), cls.ranges.get(name))
            if values.get(name, value) != value:
                raise InputError(
                    f"config.json {key}: found {value!r} beside {given[name]} {values[name]!r}, expected the same; "
                    "remove the wrong one"
                )
            # A round rope_theta is an int in JSON.
            values[name] = float(value) if known[name].type == "float" else value
            given[name] = key
        if "n_heads" in values:
            values.setdefault("n_kv_heads", values["n_heads"])
        return values


def architecture_of(raw: Mapping[str, Any]) -> str:
    """The first of the `architectures` that a config.json names; "None" where there is none."""
    found = raw.get("architectures")
    return str(found[0] if isinstance(found, list) and found else found)


@dataclasses.dataclass(frozen=True, kw_only=True)
class HfConfig(Config):
    """A config whose published file speaks transformers' names."""

    tie_word_embeddings: bool = False

    required: ClassVar[Mapping[str, Any]] = {
        "hidden_act": "silu",
        "layer_types": Each("full_attention"),
        "mlp_bias": False,
        "partial_rotary_factor": 1.0,
        "use_sliding_window": False,
    }
    renamed: ClassVar[Mapping[str, str]] = {
        "hidden_size": "d_model",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "num_key_value_heads": "n_kv_heads",
        "intermediate_size": "mlp_hidden_size",
        "max_position_embeddings": "max_sequence_length",
    }

    @property
    def tied(self) -> bool:  # type: ignore[override]
        return self.tie_word_embeddings


def _check_value(name: str, value: Any, kind: str, span: tuple[float | int, float | int] | None) -> None:
    """Raises InputError for a value that a field of this type cannot have; `span`: the least and the most of it."""
    if value is None and kind.endswith("None"):
        return
    if kind.startswith("tuple"):
        for item in _as_list(value):
            _check_value(name, item, "int", (0, MOST))
        return
    types, word = _KINDS[kind]
    low, high = span or _RANGES.get(kind, (None, None))
    fits = isinstance(value, types) and isinstance(value, bool) == (types is bool)
    if not fits or (low is not None and not low <= value <= high):
        bounds = "" if low is None else f" from {low} to {high}"
        raise InputError(f"makes no model: {name}: found {reprlib.repr(value)}, expected {word}{bounds}")


def _without_lists(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json in which each special id stands alone.

    `eos_token_id` and `eot_token_id` may be lists: the first id of either is it, what else they hold ends an answer as
    well (`further_eos_token_ids`). Raises InputError where the mask is more than one id.
    """
    flat, further = dict(raw), list(_as_list(raw.get("further_eos_token_ids")))
    for key in ("mask_token_id", "eos_token_id", "eot_token_id"):
        first, *others = _as_list(raw.get(key)) or [None]
        if others and key == "mask_token_id":
            raise InputError(f"config.json {key}: found {raw[key]!r}, expected one id")
        flat[key] = first
        further += others
    flat["further_eos_token_ids"] = tuple(further)
    return flat


def _as_list(found: Any) -> list[Any]:
    """What a key holds that may be a value, a list of them, or null."""
    return list(found) if isinstance(found, list | tuple) else [] if found is None else [found]


def _fits(found: Any, wanted: Any) -> bool:
    """Whether a value is the required one; null, false, 0 and an empty list or object all turn a feature off.

    A number that is null stands for the one that changes nothing, which is the required one.
    """
    if isinstance(wanted, Each):
        return all(_fits(layer, wanted.value) for layer in _as_list(found))
    if found is None and isinstance(wanted, float):
        return True
    same = found == wanted and isinstance(found, bool) == isinstance(wanted, bool)
    return same or (not found and not wanted)
