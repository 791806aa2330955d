"""Fast-dLLM v2: Qwen2.5's stack with block-causal attention in blocks of 32; logits are shifted by one.

Facts: NVlabs/Fast-dLLM `v2/modeling.py` (arXiv 2509.26328). Queries, keys and values have biases; the small size ties
the head. A block's first token is read at the last position of the block before, which sees nothing of it: so it can be
known before its block is begun (cache `seeded`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

from jaxdiff.models.config import SLIDING_WINDOW, HfConfig
from jaxdiff.models.shifted import Shifted


@dataclasses.dataclass(frozen=True, kw_only=True)
class FastDllmV2Config(HfConfig):
    """Read from the published `config.json` (architectures Fast_dLLM_QwenForCausalLM).

    Attributes:
        mask_token_id: published files do not name it; the published sampler has this one.
        attention_block: positions of a block (`bd_size`).
    """

    mask_token_id: int = 151665
    attention_block: int = 32

    renamed: ClassVar[Mapping[str, str]] = {**HfConfig.renamed, "bd_size": "attention_block"}
    harmless: ClassVar[frozenset[str]] = SLIDING_WINDOW
    qkv_bias: ClassVar[bool] = True


@dataclasses.dataclass(frozen=True)
class FastDllmV2(Shifted):
    """Fast_dLLM_v2_1.5B, Fast_dLLM_v2_7B."""

    config: FastDllmV2Config

    tempered = True
