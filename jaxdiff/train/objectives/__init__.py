"""What is lost: one file per objective. What is masked before is the noise's (`jaxdiff.train.noises`)."""

from jaxdiff.registry import Registry
from jaxdiff.train import noises
from jaxdiff.train.noises import Noise
from jaxdiff.train.objectives.base import Network as Network
from jaxdiff.train.objectives.base import Objective as Objective
from jaxdiff.train.objectives.certainty import Certainty
from jaxdiff.train.objectives.denoise import Denoise
from jaxdiff.train.objectives.insertion import Insertion
from jaxdiff.train.objectives.near_far import NearFar
from jaxdiff.train.objectives.next_token import NextToken
from jaxdiff.train.objectives.trajectory import Trajectory

OBJECTIVES = Registry(
    "objective",
    {
        "denoise": Denoise,
        "certainty": Certainty,
        "trajectory": Trajectory,
        "near_far": NearFar,
        "next_token": NextToken,
        "insertion": Insertion,
    },
)


def parse(objective: str, noise: str | None) -> tuple[Objective, Noise]:
    """The objective that `name:k=v,...` describes, and the noise; None: the one that is published with it.

    Raises InputError for a name, an argument or a value that is not known, and for two that do not go together.
    """
    what = OBJECTIVES.parse(objective)
    masks = noises.parse(what.noise if noise is None else noise)
    what.check(masks)
    return what, masks
