"""What is refused of a decoder with a constraint, and of one with a model that encodes visible tokens once."""

from __future__ import annotations

import jax
import numpy as np

from jaxdiff.caches import CACHES
from jaxdiff.decode.decoder import Decoder
from jaxdiff.fills import FILLS
from jaxdiff.policies import POLICIES
from jaxdiff.protocols import Model, Stopper, is_encoding
from jaxdiff.stoppers import STOPPERS
from jaxdiff.types import InputError


def check_constraint(stop: Stopper, strings: bool) -> None:
    """Raises InputError for what would end a row before its text matches the constraint; `strings`: stop strings."""
    if stop.cuts:
        raise InputError(
            f"constraint: found one with stop {STOPPERS.name_of(stop)}, which ends a row where it foresees the end of "
            "a text that is not written; take stop eos or none"
        )
    if strings:
        raise InputError(
            "constraint: found one with stop strings, which would end a row before its text matches; leave one of the "
            "two out"
        )


def check_weighed(decoder: Decoder, block: int | None) -> None:
    """Raises InputError for what would make the weights of a constraint that draws by rejection wrong, with blocks of
    that length (None: not known yet).
    """
    constraint, policy, sampling = decoder.constraint, decoder.policy, decoder.sampling
    if constraint is None or constraint.estimator is None:
        return
    in_order = block in (None, 1) and not (policy.waits or policy.revises)  # one position: there is nothing to choose
    if not policy.blind and not in_order:
        raise InputError(
            f"constraint: found one that draws by rejection with policy {POLICIES.name_of(policy)}, whose order looks "
            "at the candidates, so that the weights would be wrong; take fixed:order=random, left or entropy, entropy, "
            "entropy_bounded, multi_block, or block_length 1"
        )
    if (fill := FILLS.name_of(decoder.fill)) != "parallel":
        raise InputError(f"fill: found {fill} with a constraint that draws by rejection; take fill parallel")
    if sampling.defer_eos:
        raise InputError(
            "defer_eos: found it with a constraint that draws by rejection: the order then looks at the candidates, "
            "and the weights would be wrong; leave it out"
        )
    cold = sampling.temperature
    if not isinstance(cold, jax.core.Tracer) and np.any(np.asarray(cold) <= 0.0):
        raise InputError(
            "temperature: found 0 with a constraint that draws by rejection, expected more: at 0 nothing is drawn; "
            "take 1, or a regular expression alone"
        )


def check_encoding(decoder: Decoder, model: Model) -> None:
    """Raises InputError for what a decoder asks of a model that encodes visible tokens once in vain, and for the cache
    of such models with any other.
    """
    cache = CACHES.name_of(decoder.cache)
    if not is_encoding(model):
        if decoder.cache.window == "masks":
            raise InputError(
                f"cache: found {cache} with a {type(model).__name__}, whose visible tokens see masks, expected a model "
                "that encodes them once (family enat); take cache prefix, dual or frozen"
            )
        return
    kind = f"with a model that encodes visible tokens once ({type(model).__name__})"
    if decoder.cache.window not in ("canvas", "masks"):
        raise InputError(f"cache: found {cache} {kind}, expected encoded, its exact KV cache, or none; take encoded")
    if decoder.policy.revises:
        raise InputError(
            f"policy: found {POLICIES.name_of(decoder.policy)} {kind}, expected one that takes nothing back: what was "
            "encoded has been seen; take fixed, threshold or another that only commits"
        )
    if (fill := FILLS.name_of(decoder.fill)) != "parallel":
        raise InputError(f"fill: found {fill} {kind}, whose passes are of masks alone; take fill parallel")
    if decoder.sampling.cfg_scale is not None:
        raise InputError(f"cfg_scale: found one {kind}, whose prompt is never masked; leave it out")
