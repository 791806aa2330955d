"""What the head says of gaps: of each its candidate and its mass, in one softmax over all gaps and tokens of a row.

features [B S D] --(per tile of V, `decode.tiles`)--> Running [B S] each, merged -> Candidates

Top-p and top-k cut pairs of gap and token, not tokens of a gap. The search for the lowest logit that they leave
(`decode.nucleus`) is given each row's gaps and ids as one axis.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdiff.decode.decoder import Sampling
from jaxdiff.decode.nucleus import lowest_kept, sortable
from jaxdiff.decode.running import Running, merge, summarise
from jaxdiff.decode.tiles import Asked, Draws, Part, Tile, over_tiles
from jaxdiff.decode.vocabulary import Vocabulary
from jaxdiff.pytree import pytree
from jaxdiff.types import NEVER


@pytree
class Candidates:
    """Of each gap; NEVER where it is closed.

    Attributes:
        token: the likeliest, or the one that was drawn.
        logit: the candidate's; `mass`: logsumexp of all tokens of the gap. Before temperature and cuts.
        key: what the candidate was chosen by: its logit, plus noise at temperature > 0, where the cuts left it.
        gap: what its key was ahead of the next best token's.
    """

    token: Int[Array, "B S"]
    logit: Float[Array, "B S"]
    mass: Float[Array, "B S"]
    key: Float[Array, "B S"]
    gap: Float[Array, "B S"]


def candidates(
    features: Float[Array, "B S D"],
    head: Float[Any, "D V"],
    is_open: Bool[Array, "B S"],
    vocabulary: Vocabulary,
    sampling: Sampling,
    draws: Draws,
) -> Candidates:
    """What may be inserted into each gap. Sampling's cuts do nothing in rows of temperature 0."""
    asked = Asked.of(features, vocabulary, dataclasses.replace(sampling, top_p=None, top_k=None), draws)

    def of_open(tile: Tile) -> Float[Array, "B S v"]:
        return jnp.where(is_open[..., None], tile.logits, NEVER)

    least = None
    if sampling.top_p is not None or sampling.top_k is not None:
        part = Part(asked, head, jnp.int32(0))

        def pairs(index: Int[Array, ""]) -> Float[Array, "B 1 Sv"]:
            logits = of_open(part.at(index))
            return logits.reshape(logits.shape[0], 1, -1)

        least = lowest_kept(pairs, part.tiles, 1.0 / asked.divisor, sampling.top_p, sampling.top_k, None)

    def summary(tile: Tile) -> Running:
        logits = of_open(tile)
        kept = logits
        if least is not None:
            stays = (sortable(logits) >= least[..., None]) | (asked.noise_scale == 0.0)
            kept = jnp.where(stays, logits, NEVER)
        cut = dataclasses.replace(tile, logits=kept)
        keys = jax.lax.cond(asked.drawn, cut.noisy, lambda: kept)
        return summarise(logits, keys, tile.ids)

    running = over_tiles(asked, head, summary, merge, None)
    shut = running.key <= NEVER
    return Candidates(
        token=jnp.where(shut, vocabulary.stand_in, running.token),
        logit=jnp.where(shut, NEVER, running.logit),
        mass=jnp.where(is_open, jnp.logaddexp(running.logit, running.rest), NEVER),
        key=running.key,
        gap=running.key - running.next_key,
    )
