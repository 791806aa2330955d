"""What the ids of a vocabulary mean to a decode."""

from __future__ import annotations

import dataclasses

from jaxdiff.decode.decoder import Sampling
from jaxdiff.protocols import Model
from jaxdiff.types import text_end_ids


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """What the ids mean.

    Attributes:
        size: ids from here on are padding, without mass.
        forbidden: ids without mass: [MASK], and end-of-text under LLaDA's `logits_eos_inf`.
        deferred: ids whose positions go last, with probability 0 (LLaDA's `confidence_eos_eot_inf`).
        tempered: the belief is of softmax(logits / temperature), as Dream, LLaDA2 and SDAR have it, and not of
            softmax(logits), as LLaDA's `generate.py` does. Either way it is of what top-p and top-k leave.
    """

    size: int
    forbidden: tuple[int, ...]
    deferred: tuple[int, ...] = ()
    tempered: bool = False

    @classmethod
    def of(cls, model: Model, sampling: Sampling) -> Vocabulary:
        config = model.config
        forbidden = (config.mask_token_id, *(text_end_ids(config) if sampling.forbid_eos else ()))
        return cls(config.vocab_size, forbidden, config.eos_ids if sampling.defer_eos else (), model.tempered)

    @property
    def stand_in(self) -> int:
        """The candidate where none has mass: the first id that is not forbidden."""
        return next(token for token in range(self.size) if token not in self.forbidden)
