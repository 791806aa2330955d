"""The compiled decode: loop, scores, stoppers."""

from jaxdiff.decode.api import decode, infill, pad_prompts
from jaxdiff.decode.loop import Reason, Result, State
from jaxdiff.decode.many import Timed
from jaxdiff.decode.stop import EosStop, NoStop, parse_stopper

__all__ = [
    "EosStop",
    "NoStop",
    "Reason",
    "Result",
    "State",
    "Timed",
    "decode",
    "infill",
    "pad_prompts",
    "parse_stopper",
]
