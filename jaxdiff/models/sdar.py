"""SDAR: Qwen3's stack with block-causal attention in blocks of 4.

Facts: JetAstra/SDAR `modeling_sdar.py`, `generate.py`. Queries and keys are normalised head by head, the head size does
not follow from the width, small sizes tie the head; logits are read at their own position.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from jaxdiff.models.config import SLIDING_WINDOW, HfConfig
from jaxdiff.models.stack import Transformer


@dataclasses.dataclass(frozen=True, kw_only=True)
class SdarConfig(HfConfig):
    """Read from the published `config.json` (architectures SDARForCausalLM).

    Attributes:
        attention_block: positions of a block; published sizes go from 4 to 64 (`block_size` in some files).
    """

    head_dim: int = 128
    attention_block: int = 4

    required: ClassVar[Mapping[str, Any]] = {**HfConfig.required, "attention_bias": False}
    renamed: ClassVar[Mapping[str, str]] = {**HfConfig.renamed, "block_size": "attention_block"}
    # The others are of the authors' trainer: its kernels, its loss, its expert parallelism.
    harmless: ClassVar[frozenset[str]] = SLIDING_WINDOW | {
        "debug",
        "ep_size",
        "fuse_cross_entropy",
        "micro_forward",
        "skip_checkpoint",
        "use_deepep",
    }
    published: ClassVar[tuple[int, Mapping[str, int]]] = (
        151936,
        {"mask_token_id": 151669, "eos_token_id": 151643, "eot_token_id": 151645},
    )
    qk_norm: ClassVar[bool] = True


@dataclasses.dataclass(frozen=True)
class Sdar(Transformer):
    """SDAR-1.7B, SDAR-4B, SDAR-8B (the dense sizes)."""

    config: SdarConfig

    tempered = True
