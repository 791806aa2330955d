"""One file per family. `build` turns a config.json into a model."""

from collections.abc import Mapping
from typing import Any

from jaxdiff.models.config import Config
from jaxdiff.models.dream import Dream, DreamConfig
from jaxdiff.models.llada import Llada, LladaConfig
from jaxdiff.models.llada2 import Llada2, Llada2Config
from jaxdiff.models.llada_moe import LladaMoe, LladaMoeConfig
from jaxdiff.models.sdar import Sdar, SdarConfig
from jaxdiff.models.stack import Transformer
from jaxdiff.types import InputError, Model

FAMILIES: dict[str, tuple[type[Transformer], type[Config]]] = {
    "llada": (Llada, LladaConfig),
    "dream": (Dream, DreamConfig),
    "llada_moe": (LladaMoe, LladaMoeConfig),
    "llada2": (Llada2, Llada2Config),
    "sdar": (Sdar, SdarConfig),
}
ARCHITECTURES = {
    "LLaDAModelLM": "llada",
    "ILLaDAForCausalLM": "llada",
    "DreamModel": "dream",
    "LLaDAMoEModelLM": "llada_moe",
    "LLaDA2MoeModelLM": "llada2",
    "SDARForCausalLM": "sdar",
}


def build(config: Mapping[str, Any]) -> Model:
    """The model that a config describes: by our own `family`, else by the published `architectures`.

    Raises InputError for a family that is not known here.
    """
    published = (config.get("architectures") or [None])[0]
    family = config.get("family") or ARCHITECTURES.get(str(published))
    if family not in FAMILIES:
        raise InputError(
            f"config.json: found family {family!r}, architectures {published!r}; expected family "
            f"{', '.join(FAMILIES)} or architectures {', '.join(ARCHITECTURES)}"
        )
    model, parse = FAMILIES[family]
    return model(parse.from_dict(config))


def family_of(model: Model) -> str:
    """The name under which our own folders keep a model."""
    return next(name for name, (kind, _) in FAMILIES.items() if type(model) is kind)


__all__ = [
    "FAMILIES",
    "Dream",
    "DreamConfig",
    "Llada",
    "Llada2",
    "Llada2Config",
    "LladaConfig",
    "LladaMoe",
    "LladaMoeConfig",
    "Sdar",
    "SdarConfig",
    "build",
    "family_of",
]
