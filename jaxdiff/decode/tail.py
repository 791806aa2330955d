"""Where a full pass foresees the end of the text among the open positions, for a stopper that asks."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdiff.decode.passes import StepPasses
from jaxdiff.decode.pieces import most
from jaxdiff.parallel.mesh import platform
from jaxdiff.pytree import pytree
from jaxdiff.types import NEVER, Tail
from jaxdiff.windows import put, take

LOOK = {"cpu": 64}  # positions that are looked at together, by platform; elsewhere all


@pytree
class Wide:
    """The features of all tokens that a pass was fed, in their columns: from `first` up to `stop`."""

    features: Float[Array, "B L D"]
    first: Int[Array, " B"]
    stop: Int[Array, " B"]


def foresee(passes: StepPasses, wide: Wide, open_: Bool[Array, "B L"], rows: Bool[Array, " B"] | None = None) -> Tail:
    """Where these rows, or all, foresee an end of the text at positions that are `open_`; LOOK positions at a time."""
    columns = open_.shape[1]
    length = min(columns, LOOK.get(platform(), columns))
    first, stop = passes.place.start, jnp.minimum(passes.seen, wide.stop)

    def piece(index: int | Int[Array, ""], tail: Tail) -> Tail:
        start = jnp.clip(first + index * length, 0, columns - length)
        column = start[:, None] + jnp.arange(length, dtype=jnp.int32)[None]
        foreseen, log_odds = passes.text_ends(take(wide.features, start, length), column)
        ends = foreseen & take(open_, start, length) & (column >= wide.first[:, None]) & (column < stop[:, None])
        log_odds = jnp.where(ends, log_odds, NEVER)
        return Tail(ends=put(tail.ends, ends, start), log_odds=put(tail.log_odds, log_odds, start))

    return jax.lax.fori_loop(0, -(-most(stop - first, rows) // length), piece, no_tail(open_.shape))


def no_tail(shape: tuple[int, ...]) -> Tail:
    """No end of the text anywhere on canvases of this shape [B L]."""
    return Tail(ends=jnp.zeros(shape, bool), log_odds=jnp.full(shape, NEVER, jnp.float32))
