"""What the autoregressive families share: attention to what lies left, and logits that are read one position before.

Such a model is one that attends in blocks of one position and whose logits are shifted by one, so that a decode of it
is that of any model with blocks: every hole but the first lies right of all that a pass reads. Cache `seeded` is then
the usual K/V cache: the pass that stores the token just written reads the next one.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdiff.models.config import HfConfig
from jaxdiff.models.shifted import Shifted
from jaxdiff.types import Inputs, KVCache, Params, Span


@dataclasses.dataclass(frozen=True, kw_only=True)
class CausalConfig(HfConfig):
    """The config of an autoregressive family.

    Attributes:
        mask_token_id: the id that stands where nothing is written yet. Published files have none: it is then
            `vocab_size`, one past the last id, which no prompt may hold and nothing predicts. A model that was trained
            on masked inputs (noise `meap`) names one of its vocabulary.
    """

    mask_token_id: int | None = None  # type: ignore[assignment]

    mask_may_lack: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.mask_token_id is None:
            object.__setattr__(self, "mask_token_id", self.vocab_size)
        super().__post_init__()

    @property
    def attention_block(self) -> int | None:
        """Blocks of one position: causal attention."""
        return 1


class Causal(Shifted):
    """A `Shifted` network with causal attention."""

    config: CausalConfig

    def apply(
        self,
        params: Params,
        inputs: Inputs,
        kv: KVCache | None = None,
        at: Int[Array, " B"] | Int[Array, "B T"] | None = None,
        read: Span | None = None,
    ) -> tuple[Float[Array, "B r D"], KVCache | None]:
        """As every family's. A hole is fed as the last id of the vocabulary where it has no embedding: nobody sees it,
        since all that is read lies left of it.
        """
        tokens = jnp.minimum(inputs.tokens, self.config.vocab_size - 1)
        return super().apply(params, dataclasses.replace(inputs, tokens=tokens), kv, at, read)
