"""The compiled decode: loop, scores, stoppers; and the queue that feeds it."""

from jaxdiff.decode.api import decode, infill, pad_prompts
from jaxdiff.decode.cache import BlockCausal, Dual, Frozen, NoCache, Prefix, parse_cache
from jaxdiff.decode.loop import Reason, Result
from jaxdiff.decode.many import Timed
from jaxdiff.decode.state import State
from jaxdiff.decode.stop import EosStop, EotpStop, NoStop, parse_stopper
from jaxdiff.decode.stream import Answer, Meter, Refusal, Request, decode_stream

__all__ = [
    "Answer",
    "BlockCausal",
    "Dual",
    "EosStop",
    "EotpStop",
    "Frozen",
    "Meter",
    "NoCache",
    "NoStop",
    "Prefix",
    "Reason",
    "Refusal",
    "Request",
    "Result",
    "State",
    "Timed",
    "decode",
    "decode_stream",
    "infill",
    "pad_prompts",
    "parse_cache",
    "parse_stopper",
]
