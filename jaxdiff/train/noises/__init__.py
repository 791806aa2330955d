"""What is masked: a noise makes of each row of a batch one noisy canvas, or several, and says where there is a token to
learn. What is lost there is the objective's (`objectives/`).

A share is one of tokens, not a probability: k = ceil(t n) of n tokens are masked, as in LLaDA's likelihood estimate
(arXiv 2502.09992, equation 6). Every set of masks has the expected weight that independent draws give it, while no row
is left without a mask and no weight exceeds n: on answers of a few tokens the gradient varies far less. Prompts are
never masked, and the end-of-text padding is part of the answer unless a noise says otherwise (`meap`, for
autoregressive models, says otherwise of both; `drop`, for insertion models, leaves end-of-text out).

`parse` reads a recipe's `name:k=v,...`; of several with ` + ` between them a row has the canvases of each.
"""

from __future__ import annotations

import jax
from jaxtyping import Array, Float, Key

from jaxdiff.protocols import Model
from jaxdiff.pytree import InputError, pytree
from jaxdiff.registry import Registry
from jaxdiff.train.data import Batch
from jaxdiff.train.network import Network
from jaxdiff.train.noises.base import TRAJECTORY as TRAJECTORY
from jaxdiff.train.noises.base import Noise, View
from jaxdiff.train.noises.complement import Complement
from jaxdiff.train.noises.drop import Drop
from jaxdiff.train.noises.meap import Meap
from jaxdiff.train.noises.mistakes import Mistakes
from jaxdiff.train.noises.mixture import Mixture, Replace
from jaxdiff.train.noises.reveal import Reveal
from jaxdiff.train.noises.semi_ar import SemiAr, Uniform
from jaxdiff.train.noises.trajectory import States, Trajectory


@pytree
class Joined:
    """The views of several noises, each with draws of its own."""

    parts: tuple[Noise, ...]

    @property
    def needs(self) -> frozenset[str]:
        return frozenset().union(*(part.needs for part in self.parts))

    @property
    def follows(self) -> bool:
        return all(part.follows for part in self.parts)

    @property
    def causal(self) -> bool:
        return any(part.causal for part in self.parts)

    @property
    def drops(self) -> bool:
        return any(part.drops for part in self.parts)

    @property
    def reveals(self) -> bool:
        return any(part.reveals for part in self.parts)

    def check_model(self, model: Model) -> None:
        for part in self.parts:
            part.check_model(model)

    def views(self, key: Key[Array, ""], batch: Batch, network: Network, done: Float[Array, ""]) -> tuple[View, ...]:
        keys = (jax.random.fold_in(key, i) for i in range(len(self.parts)))
        each = (part.views(own, batch, network, done) for part, own in zip(self.parts, keys, strict=True))
        return tuple(view for views in each for view in views)


NOISES = Registry(
    "noise",
    {
        "uniform": Uniform,
        "semi_ar": SemiAr,
        "complement": Complement,
        "trajectory": Trajectory,
        "states": States,
        "mixture": Mixture,
        "replace": Replace,
        "meap": Meap,
        "mistakes": Mistakes,
        "drop": Drop,
        "reveal": Reveal,
    },
)


def parse(text: str) -> Noise:
    """The noise that `name:k=v,...` describes, or those between ` + `.

    Raises InputError for a name, an argument or a value that is not known, with those that are; and for one of
    autoregressive or of insertion models, or of those that encode, beside others.
    """
    parts = tuple(NOISES.parse(part) for part in text.split("+"))
    if len({(part.causal, part.drops, part.reveals) for part in parts}) > 1:
        raise InputError(
            f"noise: found {text!r:.80}, expected noises that all mask what is to be learned, or meap alone, or drop "
            "alone, or reveal alone; leave one out"
        )
    return parts[0] if len(parts) == 1 else Joined(parts)
