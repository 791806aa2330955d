"""Stable-DiffCoder-8B: iLLaDA's Llama stack with block-causal attention in blocks of 4 and a head of its own.

Facts: ByteDance-Seed/Stable-DiffCoder-8B-Instruct `modeling_stable_diffcoder.py`. It is Seed-Coder's network; logits
are read at their own position. Its sampler cuts the last block where the answer ends; here it is decoded whole.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

from jaxdiff.models.illada import IlladaConfig
from jaxdiff.models.stack import Transformer


@dataclasses.dataclass(frozen=True, kw_only=True)
class StableDiffcoderConfig(IlladaConfig):
    """Read from the published `config.json` (architectures StableDiffcoderForCausalLM).

    Attributes:
        attention_block: positions of a block; 4 is the published sampler's, and a file may name it `block_size`.
    """

    attention_block: int = 4

    renamed: ClassVar[Mapping[str, str]] = {**IlladaConfig.renamed, "block_size": "attention_block"}


@dataclasses.dataclass(frozen=True)
class StableDiffcoder(Transformer):
    """Stable-DiffCoder-8B, Base and Instruct."""

    config: StableDiffcoderConfig
