"""jaxdiff: compiled decoding for masked diffusion language models, in JAX.

checkpoint = jaxdiff.load()
prompts, origin = jaxdiff.pad_prompts([checkpoint.tokenizer.prompt("...")], fill=checkpoint.tokenizer.eos_id)
result = jaxdiff.decode(checkpoint.model, checkpoint.params, prompts, origin=origin,
policy=jaxdiff.policies.Threshold(0.9), stop=jaxdiff.EosStop())
"""

from jaxdiff import convert, policies
from jaxdiff.checkpoint import Checkpoint, Tokenizer, load, save
from jaxdiff.decode import (
    BlockCausal,
    Dual,
    EosStop,
    EotpStop,
    Frozen,
    NoCache,
    NoStop,
    Prefix,
    Reason,
    Result,
    decode,
    infill,
    pad_prompts,
)
from jaxdiff.models import (
    Dream,
    DreamConfig,
    Llada,
    Llada2,
    Llada2Config,
    LladaConfig,
    LladaMoe,
    LladaMoeConfig,
    Sdar,
    SdarConfig,
    build,
)
from jaxdiff.types import InputError, Model, Policy, Proposal, Score, Stopper

__version__ = "0.1.0"

__all__ = [
    "BlockCausal",
    "Checkpoint",
    "Dream",
    "DreamConfig",
    "Dual",
    "EosStop",
    "EotpStop",
    "Frozen",
    "InputError",
    "Llada",
    "Llada2",
    "Llada2Config",
    "LladaConfig",
    "LladaMoe",
    "LladaMoeConfig",
    "Model",
    "NoCache",
    "NoStop",
    "Policy",
    "Prefix",
    "Proposal",
    "Reason",
    "Result",
    "Score",
    "Sdar",
    "SdarConfig",
    "Stopper",
    "Tokenizer",
    "build",
    "convert",
    "decode",
    "infill",
    "load",
    "pad_prompts",
    "policies",
    "save",
]
