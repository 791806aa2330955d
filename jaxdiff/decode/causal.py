"""What a decode of an autoregressive model does not have, refused before compilation; and a model that has no masks.

An autoregressive model says at each pass which token comes next, and of no other position anything. So one token a
forward is decoded, in order, and there is nothing to choose: not where (policies), not which tokens together (fills),
not where the text will end (stoppers that foresee it). Of the caches, `seeded` is the exact K/V cache, and `none` the
same without one.
"""

from __future__ import annotations

import jax

from jaxdiff.caches import CACHES
from jaxdiff.decode.decoder import Decoder
from jaxdiff.fills import FILLS
from jaxdiff.policies import POLICIES, Fixed
from jaxdiff.protocols import Model, is_causal, is_insertion
from jaxdiff.stoppers import STOPPERS
from jaxdiff.types import InputError


def check_causal(decoder: Decoder, model: Model) -> None:
    """Raises InputError for what a decoder asks of an autoregressive model in vain, and for an insertion model; every
    other model passes.
    """
    check_masks(model)
    if not is_causal(model):
        return
    kind = f"with an autoregressive model ({type(model).__name__})"
    if jax.tree.structure(decoder.policy) != jax.tree.structure(Fixed()):
        raise InputError(
            f"policy: found {POLICIES.name_of(decoder.policy)} {kind}, which decodes one token a forward, in order: "
            "nothing is left to choose; leave the policy out"
        )
    if (fill := FILLS.name_of(decoder.fill)) != "parallel":
        raise InputError(f"fill: found {fill} {kind}, which commits one token at a time; take fill parallel")
    cache = decoder.cache
    if cache.window != "canvas" and not cache.seeds:
        raise InputError(
            f"cache: found {CACHES.name_of(cache)} {kind}, expected seeded, its exact KV cache, or none; take seeded"
        )
    if (stop := STOPPERS.name_of(decoder.stop)) not in ("none", "eos"):
        raise InputError(
            f"stop: found {stop} {kind}, which foresees no end of a text behind the next token; take stop eos"
        )
    if decoder.sampling.cfg_scale is not None:
        raise InputError(f"cfg_scale: found one {kind}, which cannot read its prompt as masks; leave it out")
    if decoder.sampling.defer_eos:
        raise InputError(
            f"defer_eos: found it {kind}, which has no other token to commit first; leave it out, or take forbid_eos"
        )


def check_masks(model: Model) -> None:
    """Raises InputError for a model that fills no masks."""
    if is_insertion(model):
        raise InputError(
            f"model: found an insertion model ({type(model).__name__}), which fills no masks, expected one that does; "
            "insert with it: jaxdiff.insert, jaxdiff generate, jaxdiff eval"
        )


def check_filled(model: Model) -> None:
    """Raises InputError for a model that fills no masks, or sees nothing right of them, where there is a canvas."""
    check_masks(model)
    if is_causal(model):
        raise InputError(
            f"canvas: found one for an autoregressive model ({type(model).__name__}), which sees nothing right of a "
            "hole, expected a prompt; decode what follows it, or fill with a diffusion model"
        )
