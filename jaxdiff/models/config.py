"""What every family's config holds, and how one is read from a published `config.json` or from our own."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from jaxdiff.types import InputError

# transformers' names -> ours
_RENAMED = {
    "hidden_size": "d_model",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "num_key_value_heads": "n_kv_heads",
    "intermediate_size": "mlp_hidden_size",
    "max_position_embeddings": "max_sequence_length",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Shapes, special ids and dtype. Families add their own fields, and say what they require and what they publish.

    Attributes:
        head_dim: E; 0 means d_model / n_heads.
        eot_token_id: a chat turn's end, where the family has one beside `eos`.
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
    head_dim: int = 0
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-6
    max_sequence_length: int = 4096
    dtype: str = "bfloat16"
    prefix_lm: bool = False

    # What a family's code does whatever config.json says: another value is refused, not ignored.
    required: ClassVar[Mapping[str, Any]] = {}
    renamed: ClassVar[Mapping[str, str]] = {}
    # Special ids that published files lack: used where the vocabulary is of the published size.
    published: ClassVar[tuple[int, Mapping[str, int]]] = (0, {})
    tied: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Raises InputError for numbers that make no model."""
        if not self.head_dim and self.d_model % self.n_heads == 0:
            object.__setattr__(self, "head_dim", self.d_model // self.n_heads)
        if not self.head_dim or self.head_dim % 2:
            raise InputError(
                f"d_model: found {self.d_model} with {self.n_heads} heads, expected an even multiple of the heads"
            )
        if self.n_heads % self.n_kv_heads:
            raise InputError(f"n_kv_heads: found {self.n_kv_heads}, expected a divisor of n_heads = {self.n_heads}")
        for name in ("mask_token_id", "eos_token_id"):
            found = getattr(self, name)
            if not isinstance(found, int) or not 0 <= found < self.vocab_size:
                raise InputError(f"{name}: found {found}, expected an id under vocab_size {self.vocab_size}")
        if self.dtype not in ("bfloat16", "float32"):
            raise InputError(f"dtype: found {self.dtype!r}, expected bfloat16 or float32")

    @property
    def rotary_dim(self) -> int:
        """Dimensions of a head that rotary positions rotate."""
        return self.head_dim

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """The ids that end an answer: end-of-text, and the end of a turn where there is one."""
        return (self.eos_token_id,) if self.eot_token_id is None else (self.eos_token_id, self.eot_token_id)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Config:
        """From a config.json. Unknown keys are left alone, a missing one is named.

        Raises InputError for a file that lacks a shape or asks for a feature that this code does not have.
        """
        for key, wanted in cls.required.items():
            if raw.get(key, wanted) != wanted:
                raise InputError(f"config.json {key}: found {raw[key]!r}, expected {wanted!r}")
        known = {f.name: f for f in dataclasses.fields(cls)}
        ours = {cls.renamed.get(k, k): v for k, v in raw.items()}
        values: dict[str, Any] = {k: v for k, v in ours.items() if k in known and v is not None}
        for key, value in values.items():
            if known[key].type == "float" and isinstance(value, int):  # a round rope_theta
                values[key] = float(value)
        if "n_heads" in values:
            values.setdefault("n_kv_heads", values["n_heads"])
        size, ids = cls.published
        if values.get("vocab_size") == size:
            values = {**ids, **values}
        missing = [k for k, f in known.items() if f.default is dataclasses.MISSING and k not in values]
        if missing:
            raise InputError(f"config.json: missing {', '.join(missing)}; add the key or name another folder")
        return cls(**values)


@dataclasses.dataclass(frozen=True, kw_only=True)
class HfConfig(Config):
    """A config whose published file speaks transformers' names."""

    tie_word_embeddings: bool = False  # the head is the embedding, transposed

    required: ClassVar[Mapping[str, Any]] = {
        "hidden_act": "silu",
        "rope_scaling": None,
        "use_sliding_window": False,
    }
    renamed: ClassVar[Mapping[str, str]] = _RENAMED

    @property
    def tied(self) -> bool:  # type: ignore[override]
        return self.tie_word_embeddings

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Config:
        """As `Config.from_dict`; newer files keep `rope_theta` in `rope_parameters`."""
        rope = raw.get("rope_parameters") or {}
        if rope.get("rope_type", "default") != "default":
            raise InputError(f"config.json rope_parameters: found rope_type {rope['rope_type']!r}, expected 'default'")
        return super().from_dict({**{k: v for k, v in rope.items() if k == "rope_theta"}, **raw})
