"""Dream-7B and Dream-Coder: Qwen2.5's stack without a causal mask; logits are shifted by one.

Facts: HKUNLP/Dream `modeling_dream.py` and `generation_utils.py`. Queries, keys and values have biases, keys and values
fewer heads; cos and sin of the rotary positions are cast to the model's dtype. The network reads token i at position
i - 1, and the first token at its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from jaxdiff.models.config import SLIDING_WINDOW, HfConfig
from jaxdiff.models.shifted import Shifted


@dataclasses.dataclass(frozen=True, kw_only=True)
class DreamConfig(HfConfig):
    """Read from the published `config.json` (architectures DreamModel)."""

    required: ClassVar[Mapping[str, Any]] = {**HfConfig.required, "use_mrope": False}
    harmless: ClassVar[frozenset[str]] = SLIDING_WINDOW
    published: ClassVar[tuple[int, Mapping[str, int]]] = (
        152064,
        {"mask_token_id": 151666, "eos_token_id": 151643, "eot_token_id": 151645},
    )
    qkv_bias: ClassVar[bool] = True


@dataclasses.dataclass(frozen=True)
class Dream(Shifted):
    """Dream-7B, Dream-Coder."""

    config: DreamConfig

    tempered = True
