"""What the command line says of a draft beside a causal model; and what it cannot say with one."""

from __future__ import annotations

import jaxdiff
from jaxdiff import drafts
from jaxdiff.checkpoint import Checkpoint
from jaxdiff.cli.inserting import refuse_set
from jaxdiff.cli.options import Decoding
from jaxdiff.drafts.api import check_draft, check_target
from jaxdiff.protocols import Model

WITHOUT = (  # fields of `Decoding` that say how masks are filled, or what no draft goes with
    *("policy", "fill", "cache", "stop", "stop_string", "constraint", "steps", "block_length", "cfg_scale"),
    *("defer_eos", "length", "end_think", "guide", "insert", "mesh"),
)


def check(decoding: Decoding, model: Model) -> None:
    """Raises InputError for a draft with a model that is not autoregressive, and for what does not go with one."""
    if decoding.draft is None:
        return
    check_target(model)
    refuse_set(
        decoding,
        WITHOUT,
        ("eos",),
        "with --draft, under which a row is one prompt's next tokens up to end-of-text, on one device; leave one of "
        "them out",
    )


def draft_of(decoding: Decoding, checkpoint: Checkpoint) -> drafts.Draft | None:
    """The draft for this target; None where none is asked for. Raises InputError for one that does not go with it."""
    if decoding.draft is None:
        return None
    beside = decoding.denoiser
    denoiser = None if beside is None else jaxdiff.denoiser_of(beside, checkpoint)
    made = drafts.parse(decoding.draft, denoiser)
    check_draft(made, checkpoint.model, decoding.gen_length + 1)
    return made


def sampling(decoding: Decoding) -> jaxdiff.Sampling:
    return jaxdiff.Sampling(
        temperature=decoding.temperature,
        top_p=decoding.top_p,
        top_k=decoding.top_k,
        forbid_eos=decoding.forbid_eos,
    )
