"""One file per family. `build` turns a config.json into a model."""

from typing import Any

from jaxdiff.models.llada import Llada, LladaConfig
from jaxdiff.types import InputError, Model

FAMILIES = {"llada": (Llada, LladaConfig)}
ARCHITECTURES = {"LLaDAModelLM": "llada"}


def build(config: dict[str, Any]) -> Model:
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


__all__ = ["FAMILIES", "Llada", "LladaConfig", "build"]
