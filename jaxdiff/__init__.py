"""jaxdiff: compiled decoding for masked diffusion language models, in JAX.

checkpoint = jaxdiff.load()
prompts, origin = jaxdiff.pad_prompts([checkpoint.tokenizer.prompt("...")], fill=checkpoint.tokenizer.eos_id)
decoder = jaxdiff.Decoder(policy=jaxdiff.policies.Threshold(0.9), stop=jaxdiff.stoppers.Eos())
result = jaxdiff.decode(checkpoint.model, checkpoint.params, prompts, decoder, origin=origin)
"""

from jaxdiff import caches, constraints, convert, drafts, fills, insertion, models, policies, stoppers
from jaxdiff.checkpoint import Checkpoint, Tokenizer, inspect, load, save
from jaxdiff.convert.low_rank import save_adapter
from jaxdiff.decode import (
    Choices,
    Decoder,
    EndThink,
    Guide,
    Likelihood,
    Particles,
    Reason,
    Result,
    Sampling,
    choose,
    decode,
    infill,
    log_likelihood,
    lower,
    pad_prompts,
    particles,
    trajectory_log_prob,
)
from jaxdiff.drafters import drafted_fill
from jaxdiff.drafts import Speculated, speculate
from jaxdiff.filters import learned_policy
from jaxdiff.guides import denoiser_of, guide_of
from jaxdiff.insertion import Inserted, insert
from jaxdiff.models import build
from jaxdiff.parallel.mesh import make_mesh
from jaxdiff.protocols import Cache, Constraint, Fill, Model, Policy, Predicate, Stopper
from jaxdiff.serve import Answer, Meter, Partial, Refusal, Request, decode_stream
from jaxdiff.types import InputError, Inputs, Progress, Proposal, Score, Span, Written

__version__ = "0.1.0"

__all__ = [
    "Answer",
    "Cache",
    "Checkpoint",
    "Choices",
    "Constraint",
    "Decoder",
    "EndThink",
    "Fill",
    "Guide",
    "InputError",
    "Inputs",
    "Inserted",
    "Likelihood",
    "Meter",
    "Model",
    "Partial",
    "Particles",
    "Policy",
    "Predicate",
    "Progress",
    "Proposal",
    "Reason",
    "Refusal",
    "Request",
    "Result",
    "Sampling",
    "Score",
    "Span",
    "Speculated",
    "Stopper",
    "Tokenizer",
    "Written",
    "build",
    "caches",
    "choose",
    "constraints",
    "convert",
    "decode",
    "decode_stream",
    "denoiser_of",
    "drafted_fill",
    "drafts",
    "fills",
    "guide_of",
    "infill",
    "insert",
    "insertion",
    "inspect",
    "learned_policy",
    "load",
    "log_likelihood",
    "lower",
    "make_mesh",
    "models",
    "pad_prompts",
    "particles",
    "policies",
    "save",
    "save_adapter",
    "speculate",
    "stoppers",
    "trajectory_log_prob",
]
