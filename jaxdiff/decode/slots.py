"""Slots: rows of a state that are given a new request as soon as the last one is done. Pure functions, all compiled.

    blank -> State -> [ refill -> advance -> finish ] -> State -> [ ... ]      one `turn` is one compiled program
                        |  rows that are free begin another request
                                  |  a `while_loop` over `step`, until rows are done

This is what a serving engine embeds: it owns the queue, calls `turn` with what came in, and takes the rows that are not
live out of the result. Shapes are those of the slots and of the canvas, so nothing recompiles for a new request. Rows
do not see each other, so a request's answer does not depend on its slot, on its neighbours or on when it came in.
`stream.py` is such an engine, for a queue that is read in order.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Key

from jaxdiff.decode.loop import Result, begin, finish, keep, step
from jaxdiff.decode.state import Settings, State, fold, holes
from jaxdiff.parallel import MEMORY, ROWS, WHOLE, over_data, specs_of
from jaxdiff.types import Model, Params, pytree

MEMORY_COLUMNS = 3  # of a memory's leaves [N B K L E]: the axis of the canvas


@pytree
class Incoming:
    """Requests for the rows where `fresh`; the other rows of `canvas`, `origin` and `number` are not read.

    A canvas is laid out as `begin` takes it: the prompt ends at column `settings.first`, what is masked from there on
    is to be generated. `number` is the request's own: its key is the run's, folded with it.
    """

    fresh: Bool[Array, " B"]
    canvas: Int[Array, "B L"]
    origin: Int[Array, " B"]
    number: Int[Array, " B"]


@pytree
class Turn:
    """What one turn gives: the state to go on from, the result of the rows that are not `live`, and what it cost.

    The policies' final states are left in `state`.
    """

    state: State
    result: Result
    live: Bool[Array, " B"]
    steps: Int[Array, ""]  # forwards of the whole batch; over a mesh, of the shard of rows that took most
    busy: Int[Array, ""]  # of their rows, those that a live request took part in


def blank(model: Model, rows: int, length: int, settings: Settings) -> State:
    """A state of `rows` free slots with a canvas of `length`: nothing is to be generated yet."""
    canvas = jnp.full((rows, length), model.config.eos_token_id, jnp.int32)
    keys = jnp.broadcast_to(jax.random.key(0), (rows,))
    return begin(model, canvas, jnp.zeros((rows,), jnp.int32), keys, settings)


def refill(model: Model, settings: Settings, state: State, incoming: Incoming, key: Key[Array, ""]) -> State:
    """`state` with the fresh rows at the beginning of their requests; the others are as they were.

    Every leaf of the state, of a policy's and a stopper's too, leads with B. The memory alone does not, and stays: a
    row that begins reads of it only what it has rebuilt.
    """
    keys = fold(jnp.broadcast_to(key, incoming.number.shape), incoming.number)
    begun = begin(model, incoming.canvas, incoming.origin, keys, settings)
    kept = keep(incoming.fresh, *(dataclasses.replace(each, memory=None) for each in (begun, state)))
    return dataclasses.replace(kept, memory=state.memory)


def advance(
    model: Model, params: Params, settings: Settings, state: State, free: Int[Array, ""]
) -> tuple[State, Int[Array, ""]]:
    """Step until `free` of the rows that are live now are done, or all are: (state, steps)."""
    entered = jnp.any(holes(model, state), axis=1)

    def goes_on(carry: tuple[State, Int[Array, ""]]) -> Bool[Array, ""]:
        live = jnp.any(holes(model, carry[0]), axis=1)
        return jnp.any(live) & (jnp.sum(entered & ~live, dtype=jnp.int32) < free)

    def once(carry: tuple[State, Int[Array, ""]]) -> tuple[State, Int[Array, ""]]:
        return step(model, params, settings, carry[0]), carry[1] + 1

    return jax.lax.while_loop(goes_on, once, (state, jnp.int32(0)))


def turn(
    model: Model,
    params: Params,
    settings: Settings,
    state: State,
    incoming: Incoming,
    key: Key[Array, ""],
    free: Int[Array, ""],
) -> Turn:
    """`refill`, `advance`, `finish`: one program, for the caller to compile. `state` may be donated.

    Args:
        settings: what all requests share; its `first` and the canvas' length are those of the slots. A policy that
            needs a reference is bound to that of all slots.
        key: of the run; request i draws from `fold_in(key, i)`.
        free: leave the loop once so many rows are done. 1 wastes no forward on an empty slot; more saves round trips
            to the host, where those cost more than a forward. Over a mesh each shard of rows leaves its own loop so.
    """
    arguments = (params, settings, state, incoming, key, free)
    program = functools.partial(_turn, model)
    if settings.mesh is not None:
        rows = jax.tree.map_with_path(lambda path, _: MEMORY if path[0].name == "memory" else ROWS, state)
        specs = (WHOLE, specs_of(settings), rows, ROWS, WHOLE, WHOLE)
        program = over_data(program, settings.mesh, specs, (rows, *[ROWS] * 4))
    after, result, live, steps, busy = program(*arguments)
    return Turn(after, result, live, steps=jnp.max(steps), busy=jnp.sum(busy, dtype=jnp.int32))


def _turn(
    model: Model,
    params: Params,
    settings: Settings,
    state: State,
    incoming: Incoming,
    key: Key[Array, ""],
    free: Int[Array, ""],
) -> tuple[State, Result, Bool[Array, " B"], Int[Array, " 1"], Int[Array, " 1"]]:
    """What `Turn` holds, of one shard of rows."""
    begun = refill(model, settings, state, incoming, key)
    after, steps = advance(model, params, settings, begun, free)
    result = dataclasses.replace(finish(model, settings, after), policy=())
    busy = jnp.sum(after.nfe - begun.nfe, dtype=jnp.int32, keepdims=True) // settings.copies
    return after, result, jnp.any(holes(model, after), axis=1), steps[None], busy


def widened(model: Model, by: int, state: State) -> State:
    """`state` on a canvas with `by` more columns of padding on the left, or, negative, with fewer.

    Rows keep their absolute positions, so that answers do not change. What is cut off must be padding in every live
    row. A policy's or stopper's state must not depend on the canvas' length.
    """

    def moved(rows: Array, fill: Any, axis: int = 1) -> Array:
        if by < 0:
            return jax.lax.slice_in_dim(rows, -by, rows.shape[axis], axis=axis)
        before = [(by if i == axis else 0, 0) for i in range(rows.ndim)]
        return jnp.pad(rows, before, constant_values=fill)

    return dataclasses.replace(
        state,
        canvas=moved(state.canvas, model.config.eos_token_id),
        given=moved(state.given, True),
        commit_step=moved(state.commit_step, -1),
        origin=jnp.maximum(state.origin + by, 0),
        end=state.end + by,
        start=state.start + by,
        memory=jax.tree.map(lambda leaf: moved(leaf, 0, axis=MEMORY_COLUMNS), state.memory),
    )
