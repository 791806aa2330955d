"""An autoregressive model beside the denoiser, and what a decode with one does not have, refused before compilation.

Guided diffusion (FlashDLM, arXiv 2505.21467, Zhanqiu Hu's `flash-dlm-experimental`): the denoiser drafts a whole block,
the guide reads the draft in one causal pass and says how far it holds together (`policies.agree`, `guide_pass.py`).
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxdiff.caches import CACHES
from jaxdiff.decode.decoder import Decoder, check_kind
from jaxdiff.fills import FILLS
from jaxdiff.parallel.rules import place
from jaxdiff.policies import POLICIES
from jaxdiff.protocols import Model, Policy, is_causal
from jaxdiff.pytree import pytree, static
from jaxdiff.stoppers import STOPPERS
from jaxdiff.types import GREEDY, GUIDE, InputError, Params


@pytree
class Guide:
    """A guide: a static autoregressive model, and its parameters.

    Its ids must be those of the denoiser's tokenizer (`jaxdiff.guide_of` compares two folders).
    """

    model: Model = static()
    params: Params

    def __post_init__(self) -> None:
        """Raises InputError for a model that is not autoregressive."""
        if not isinstance(self.model, Model) or not is_causal(self.model):
            raise InputError(
                f"guide: found a {type(self.model).__name__}, expected an autoregressive model, which reads from "
                "left to right; take one of family llama, qwen2 or qwen3"
            )

    def over(self, mesh: Mesh) -> Guide:
        """With its parameters laid over a mesh. Raises InputError for one that they do not spread over."""
        return Guide(self.model, place(self.model.config, self.params, mesh))


def check_guide(decoder: Decoder, model: Model, guide: Any, longest: int | None = None) -> None:
    """Raises InputError for a guide without a policy that asks it, for such a policy without a guide, and for what of
    the decoder does not go with the two.

    Args:
        longest: tokens of the longest row, prompt and answer; None: not known yet.
    """
    check_asked(decoder.policy, guide is not None)
    if guide is None:
        return
    check_kind("guide", guide, Guide)
    theirs, ours = guide.model.config, model.config
    if theirs.vocab_size != ours.vocab_size:
        raise InputError(
            f"guide: found a vocabulary of {theirs.vocab_size}, expected the denoiser's of {ours.vocab_size}: both "
            "must read one tokenizer's ids; take a guide that was trained on it"
        )
    if longest is not None:
        check_context(guide, longest)
    check_parts(decoder)


def check_context(guide: Guide | None, longest: int) -> None:
    """Raises InputError for rows of more tokens, prompt and answer, than the guide's context holds."""
    if guide is not None and longest > (context := guide.model.config.max_sequence_length):
        raise InputError(
            f"guide: found a context of {context}, expected {longest} or more, prompt and generation; shorten one of "
            "them"
        )


def check_asked(policy: Policy, given: bool) -> None:
    """Raises InputError for a guide that the policy does not ask, or for one that it asks and that is not given."""
    name = POLICIES.name_of(policy)
    if given and GUIDE not in policy.needs:
        raise InputError(f"guide: found one, but policy {name} asks none; take policy agree, or leave the guide out")
    if not given and GUIDE in policy.needs:
        raise InputError(
            f"policy: found {name}, which asks a guide, and no guide; give --guide NAME (guide=Guide(model, params)), "
            "which goes with a prompt in generate, eval, bench, decode and decode_stream"
        )


def check_parts(decoder: Decoder) -> None:
    """Raises InputError for a part of a decoder that does not go with a policy that asks a guide."""
    if GUIDE not in decoder.policy.needs:
        return
    name = POLICIES.name_of(decoder.policy)
    if (fill := FILLS.name_of(decoder.fill)) != "parallel":
        raise InputError(
            f"fill: found {fill} with policy {name}, whose guide reads the draft as it is written; take fill parallel"
        )
    if decoder.cache.seeds:
        raise InputError(
            f"cache: found {CACHES.name_of(decoder.cache)} with policy {name}: it commits a block's first token "
            "without asking the guide; take cache block"
        )
    if (stop := STOPPERS.name_of(decoder.stop)) not in ("none", "eos"):
        raise InputError(
            f"stop: found {stop} with policy {name}: it ends a row where the guide has not read; take stop eos"
        )
    if decoder.constraint is not None:
        raise InputError(f"constraint: found one with policy {name}, whose guide knows none; leave one of them out")
    if decoder.sampling.defer_eos:
        raise InputError(f"defer_eos: found it with policy {name}, which commits from left to right; take forbid_eos")
    check_greedy(decoder)


def check_greedy(decoder: Decoder) -> None:
    """Raises InputError where candidates are drawn, or pushed, and the policy's own tokens are not."""
    if GREEDY not in decoder.policy.needs:
        return
    sampling, beside = decoder.sampling, "with a policy that writes the guide's most likely token (on_reject=guide)"
    drawn = not isinstance(sampling.temperature, jax.core.Tracer) and np.any(np.asarray(sampling.temperature) > 0)
    if drawn:
        found = float(np.max(np.asarray(sampling.temperature)))
        raise InputError(f"temperature: found {found:g} {beside}, expected 0; take on_reject=drafter")
    if sampling.end_think is not None:
        raise InputError(f"end_think: found it {beside}, which it does not push; take on_reject=drafter")
