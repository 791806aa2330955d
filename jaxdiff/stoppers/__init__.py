"""When a row's end moves left: one file per rule."""

from jaxdiff.registry import Modes, Registry
from jaxdiff.stoppers.eos import Eos
from jaxdiff.stoppers.eotp import BlockEotp, OfficialEotp, SafeEotp
from jaxdiff.stoppers.none import NoStop
from jaxdiff.stoppers.strings import StopStrings

STOPPERS = Registry(
    "stop",
    {
        "none": NoStop,
        "eos": Eos,
        "eotp": Modes("way", "safe", {"official": OfficialEotp, "block": BlockEotp, "safe": SafeEotp}),
    },
)

__all__ = ["STOPPERS", "BlockEotp", "Eos", "NoStop", "OfficialEotp", "SafeEotp", "StopStrings"]
