"""The compiled decode: loop, scores, stoppers."""

from jaxdiff.decode.api import decode, infill, pad_prompts
from jaxdiff.decode.cache import BlockCausal, Dual, Frozen, NoCache, Prefix, parse_cache
from jaxdiff.decode.loop import Reason, Result
from jaxdiff.decode.many import Timed
from jaxdiff.decode.state import State
from jaxdiff.decode.stop import EosStop, EotpStop, NoStop, parse_stopper

__all__ = [
    "BlockCausal",
    "Dual",
    "EosStop",
    "EotpStop",
    "Frozen",
    "NoCache",
    "NoStop",
    "Prefix",
    "Reason",
    "Result",
    "State",
    "Timed",
    "decode",
    "infill",
    "pad_prompts",
    "parse_cache",
    "parse_stopper",
]
