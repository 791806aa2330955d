"""The compiled decode: what it is given, its loop, and its programs."""

from jaxdiff.decode.api import decode, infill, lower, pad_prompts
from jaxdiff.decode.choose import Choices, choose
from jaxdiff.decode.decoder import Decoder, EndThink, Sampling
from jaxdiff.decode.guide import Guide
from jaxdiff.decode.likelihood import Likelihood, log_likelihood
from jaxdiff.decode.particles import Particles, particles
from jaxdiff.decode.program import Program, Timed
from jaxdiff.decode.result import Reason, Result
from jaxdiff.decode.trajectory import trajectory_log_prob

__all__ = [
    "Choices",
    "Decoder",
    "EndThink",
    "Guide",
    "Likelihood",
    "Particles",
    "Program",
    "Reason",
    "Result",
    "Sampling",
    "Timed",
    "choose",
    "decode",
    "infill",
    "log_likelihood",
    "lower",
    "pad_prompts",
    "particles",
    "trajectory_log_prob",
]
