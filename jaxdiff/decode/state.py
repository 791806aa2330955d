"""What a decode is given, and everything that a step of it changes."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jaxdiff.protocols import Model
from jaxdiff.pytree import pytree
from jaxdiff.types import KVCache, PartState


@pytree
class Rows:
    """What each row is to decode; every leaf leads with B.

    Attributes:
        canvas: the prompt ends at column `Layout.first`; what is [MASK] from there on is to be generated.
        origin: column of the row's first token; padding lies left of it.
        last: one past the last column asked for.
        keys: the row's own seed.
        reference: the answer of a finished decode, for a policy that needs it.
        strings: its stop strings, as `StopStrings.strings`; None where the decoder has none.
    """

    canvas: Int[Array, "B L"]
    origin: Int[Array, " B"]
    last: Int[Array, " B"]
    keys: Key[Array, " B"]
    reference: Int[Array, "B L"] | None = None
    strings: Int[Array, "B n m"] | None = None


@pytree
class State:
    """Everything that a step changes, and what a row was given. A slot can be refilled between steps.

    Leaves lead with B, but for the KV caches; `numbers` may have no axis where one number serves all rows.
    """

    rows: Rows  # as given, but for the canvas
    given: Bool[Array, "B L"]  # not to be generated: prompt, known part of an infilling canvas
    numbers: tuple[Array, ...]  # the decoder's, `pytree.numbers_of`
    end: Int[Array, " B"]  # one past the last column that the row still generates
    start: Int[Array, " B"]  # column of the block that the row stood in at its last step
    holds: Bool[Array, " B"]  # the policy is not done with that block
    still: Bool[Array, " B"]  # that step changed no token
    block_step: Int[Array, " B"]
    row_step: Int[Array, " B"]
    nfe: Int[Array, " B"]
    cheap: Int[Array, " B"]
    work: Float[Array, " B"]
    log_weight: Float[Array, " B"]  # of what was drawn under a constraint; -inf: nothing was allowed
    checks: Int[Array, " B"]
    near_ties: Int[Array, " B"]
    not_finite: Int[Array, " B"]
    commit_step: Int[Array, "B L"]
    log_prob: Float[Array, "B L"]
    policy: PartState
    fill: PartState
    stop: PartState
    text: PartState  # how far it was read for stop strings
    reached: PartState  # what of a constraint's automaton it has come to
    kv: KVCache | None  # keys and values of all columns, rows x copies; None where nobody reads them
    guide_nfe: Int[Array, " B"]
    guide_known: Int[Array, " B"]  # the guide's keys and values left of here are of what stands there
    guide_kv: KVCache | None  # of the guide's, of all columns; None where there is no guide


def holes(model: Model, state: State) -> Bool[Array, "B L"]:
    """Positions still to be committed."""
    column = jnp.arange(state.given.shape[1], dtype=jnp.int32)[None]
    return (state.rows.canvas == model.config.mask_token_id) & ~state.given & (column < state.end[:, None])


def live(model: Model, state: State) -> Bool[Array, " B"]:
    """Rows that are not done: one is live while it has a hole or its policy holds."""
    return jnp.any(holes(model, state), axis=1) | state.holds


@jax.jit
def row_keys(key: Key[Array, ""], numbers: Int[Array, " B"]) -> Key[Array, " B"]:
    """A run's key, folded with each row's number, in one program."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, numbers)


def fold(keys: Key[Array, " B"], data: int | Int[Array, ""] | Int[Array, " B"]) -> Key[Array, " B"]:
    """Each row's key, folded with one number or with its own."""
    return jax.vmap(jax.random.fold_in, (0, 0 if jnp.ndim(data) else None))(keys, data)


def keep(mask: Bool[Array, " B"], new: Any, old: Any) -> Any:
    """`new` in the marked rows, `old` elsewhere; every leaf leads with B."""
    return jax.tree.map(lambda a, b: jnp.where(mask.reshape(-1, *[1] * (a.ndim - 1)), a, b), new, old)
