"""The dense LLaDA family: a bidirectional Llama-like stack without a causal mask or time embedding.

Facts: ML-GSAI/LLaDA `modeling_llada.py` and its `config.json`. RoPE is the half-split kind, computed in float32; the
MLP is SwiGLU; `ff_proj` is the gate. The same code serves the shipped model, LLaDA-8B and LLaDA-1.5.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from jaxdiff.models.config import Config
from jaxdiff.models.stack import Transformer
from jaxdiff.types import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class LladaConfig(Config):
    """As `Config`, in the published file's own names.

    Attributes:
        embedding_size: rows of the embedding and columns of the head, where they are more than `vocab_size`: they are
            kept, and never predicted.
        weight_tying: the head is the embedding; no published size has it so.
    """

    rms_norm_eps: float = 1e-5
    include_qkv_bias: bool = False
    embedding_size: int | None = None
    weight_tying: bool = False

    required: ClassVar[Mapping[str, Any]] = {
        "block_type": "llama",
        "activation_type": "silu",
        "layer_norm_type": "rms",
        "rope": True,
        "alibi": False,
        "include_bias": False,
        "scale_logits": False,
        "attention_layer_norm": False,
        "input_emb_norm": False,
        "rope_full_precision": True,
        "layer_norm_with_affine": True,
        "bias_for_layer_norm": False,
        "block_group_size": 1,
        "multi_query_attention": None,
        "partial_rotary_factor": 1.0,
    }
    repeated: ClassVar[Mapping[str, str]] = {"tie_word_embeddings": "weight_tying"}
    harmless: ClassVar[frozenset[str]] = frozenset(
        {
            # of features that are required to be off, or in place of which another key is required
            "alibi_bias_max",
            "attention_layer_norm_with_affine",
            "mlp_ratio",
            # which kernel computes attention, and what training computed in
            "flash_attention",
            "flash_attn_varlen",
            "precision",
            # initial weights
            "init_cutoff_factor",
            "init_device",
            "init_fn",
            "init_std",
        }
    )
    # The end of a turn is named in `generate.py` alone; the other two for files that leave them to the tokenizer.
    published: ClassVar[tuple[int, Mapping[str, int]]] = (
        126464,
        {"eot_token_id": 126348, "eos_token_id": 126081, "mask_token_id": 126336},
    )

    training: ClassVar[Mapping[str, Any]] = dict.fromkeys(
        ("attention_dropout", "embedding_dropout", "residual_dropout"), 0.0
    )

    @property
    def tied(self) -> bool:  # type: ignore[override]
        return self.weight_tying

    @property
    def qkv_bias(self) -> bool:  # type: ignore[override]
        return self.include_qkv_bias

    @property
    def rope_dtype(self) -> str:
        return "float32"

    @property
    def embedding_rows(self) -> int:
        return self.embedding_size or self.vocab_size

    def _check_heads(self) -> None:
        if self.d_model % self.n_heads or self.head_dim not in (0, self.d_model // self.n_heads):
            raise InputError(f"d_model: found {self.d_model} with {self.n_heads} heads, expected a multiple of them")
        super()._check_heads()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.embedding_rows < self.vocab_size:
            raise InputError(
                f"embedding_size: found {self.embedding_size}, expected at least vocab_size {self.vocab_size}"
            )
        if self.embedding_size == self.vocab_size:  # says no more than none
            object.__setattr__(self, "embedding_size", None)


@dataclasses.dataclass(frozen=True)
class Llada(Transformer):
    """LLaDA-8B, LLaDA-1.5, and the model that ships."""

    config: LladaConfig
