"""The end-of-thought push: one token's logit is raised at one position of each row's block (iLLaDA's `generate.py`)."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdiff.decode.decoder import EndThink
from jaxdiff.decode.state import State, holes
from jaxdiff.protocols import Model
from jaxdiff.pytree import pytree
from jaxdiff.types import Place


@pytree
class Push:
    """What is added to the logit of one token of each position, before all else."""

    token: Int[Array, "B C"]
    amount: Float[Array, "B C"]


def end_think_push(
    model: Model, asked: EndThink, state: State, place: Place, first: int, columns: Int[Array, "B C"]
) -> Push:
    """The push at `columns`: boost x progress^power at the leftmost hole of each row's block, 0 elsewhere.

    It is on the token that continues the sequence there, of which the longest beginning that stands left of the hole
    counts; none where the row holds the whole of it. Progress is the hole's place in all that is to be generated, which
    begins with column `first`.
    """
    canvas, sequence = state.rows.canvas, jnp.asarray(asked.tokens, jnp.int32)
    column = jnp.arange(canvas.shape[1], dtype=jnp.int32)[None]
    inside = (column >= place.start[:, None]) & (column < place.start[:, None] + place.block)
    open_ = holes(model, state) & inside
    at = jnp.argmax(open_, axis=1).astype(jnp.int32)
    active = jnp.any(open_, axis=1) & ~_holds(canvas, sequence, first)
    token, amount = jnp.broadcast_to(sequence[0], at.shape), _amount(asked, state, first, at)
    for known in range(1, sequence.shape[0]):
        before = at[:, None] + jnp.arange(-known, 0, dtype=jnp.int32)[None]
        there = jnp.take_along_axis(canvas, jnp.maximum(before, 0), axis=1) == sequence[None, :known]
        token = jnp.where(jnp.all(there, axis=1) & (at - first >= known), sequence[known], token)
    here = (columns == at[:, None]) & active[:, None]
    return Push(jnp.broadcast_to(token[:, None], columns.shape), jnp.where(here, amount[:, None], 0.0))


def _holds(canvas: Int[Array, "B L"], sequence: Int[Array, " n"], first: int) -> Bool[Array, " B"]:
    """Whether the sequence stands in what was generated."""
    count = canvas.shape[1] - first - sequence.shape[0] + 1
    if count < 1:
        return jnp.zeros(canvas.shape[:1], bool)
    whole = jnp.ones((canvas.shape[0], count), bool)
    for n in range(sequence.shape[0]):
        whole &= canvas[:, first + n : first + n + count] == sequence[n]
    return jnp.any(whole, axis=1)


def _amount(asked: EndThink, state: State, first: int, at: Int[Array, " B"]) -> Float[Array, " B"]:
    total = jnp.maximum(state.rows.last - first, 1).astype(jnp.float32)
    progress = jnp.clip((at - first + 1).astype(jnp.float32) / total, 0.0, 1.0)
    return jnp.asarray(asked.boost) * progress ** jnp.asarray(asked.power)
