"""Next-token prediction: the objective of an autoregressive model.

Each token is learned from those before it. With masks among what is read (noise `meap`) it is MEAP's (arXiv
2502.07490): the targets stay the clean tokens, those that are masked too.
"""

from __future__ import annotations

from typing import ClassVar

from jaxdiff.protocols import Model, is_causal
from jaxdiff.pytree import InputError, pytree
from jaxdiff.train.noises import Noise
from jaxdiff.train.objectives.denoise import Denoise


@pytree
class NextToken(Denoise):
    """The mean cross entropy of a row's tokens to learn, each read at the position before, in nats."""

    noise: ClassVar[str] = "meap"

    def check(self, noise: Noise) -> None:
        if not noise.causal:
            raise InputError(
                "objective next_token: found a noise that hides what is to be learned, expected meap, whose masks are "
                "of what is read before; leave the noise out"
            )

    def check_model(self, model: Model) -> None:
        if not is_causal(model):
            raise InputError(
                f"objective next_token: found a {type(model).__name__}, which sees what it is to learn, expected an "
                "autoregressive model; name its family in the recipe (model.family: llama), or take objective denoise"
            )
