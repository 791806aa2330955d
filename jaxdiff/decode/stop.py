"""When a row's end moves left. One small frozen pytree for each rule."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Int

from jaxdiff.types import InputError, Progress, State, Stopper, pytree


@pytree
class NoStop:
    """Decode the whole canvas."""

    def init(self, rows: int) -> State:
        del rows
        return ()

    def update(self, state: State, progress: Progress) -> tuple[Int[Array, " B"], State]:
        return progress.end, state


@pytree
class EosStop:
    """End a row once an end-of-text stands with no mask left of it.

    Committed tokens never change and blocks go left to right, so the text through its first end-of-text is, token for
    token, what decoding the whole canvas gives: this stopper costs no quality under any policy.
    """

    def init(self, rows: int) -> State:
        del rows
        return ()

    def update(self, state: State, progress: Progress) -> tuple[Int[Array, " B"], State]:
        column = jnp.arange(progress.canvas.shape[1], dtype=jnp.int32)[None]
        length = jnp.int32(progress.canvas.shape[1])
        is_end = jnp.zeros(progress.canvas.shape, bool)
        for token in progress.eos_ids:
            is_end |= progress.canvas == token
        first_end = jnp.min(jnp.where(is_end & progress.generated, column, length), axis=1)
        holes = progress.generated & (progress.canvas == progress.mask_id)
        first_hole = jnp.min(jnp.where(holes, column, length), axis=1)
        return jnp.where(first_end < first_hole, first_end + 1, progress.end), state


STOPPERS: dict[str, type[Stopper]] = {"none": NoStop, "eos": EosStop}


def parse_stopper(name: str) -> Stopper:
    """The stopper called `name`. Raises InputError with the known names."""
    if name not in STOPPERS:
        raise InputError(f"stop: found {name!r}, expected one of {', '.join(STOPPERS)}")
    return STOPPERS[name]()
