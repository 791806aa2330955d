"""Slots: rows of a state that are given a new request as soon as the last one is done. Pure functions, all compiled.

    blank -> State -> [ refill -> advance -> finish ] -> State -> [ ... ]      one `serve_step` is one compiled program
                        |  rows that are free begin another request
                                  |  a `while_loop` over `step`, until rows are done or the bound on steps is reached

This is what a serving engine embeds: it owns the queue, calls `serve_step` with what came in, and takes the rows that
are not live out of the result. Shapes are those of the slots and of the canvas, so nothing recompiles for a new
request. Rows do not see each other, so a request's answer does not depend on its slot, on its neighbours or on when it
came in. `engine.py` is such an engine, for a queue that is read in order.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jaxdiff import kvcache
from jaxdiff.decode.decoder import Decoder
from jaxdiff.decode.layout import Layout
from jaxdiff.decode.loop import begin, step
from jaxdiff.decode.result import Result, finish
from jaxdiff.decode.state import Rows, State, keep, live
from jaxdiff.kvcache import shift_columns
from jaxdiff.parallel.mesh import KV_ROWS, ROWS, WHOLE, over_data, specs_of
from jaxdiff.pytree import numbers_of, pytree, with_numbers
from jaxdiff.types import REFERENCE, Model, Params


@pytree
class Incoming:
    """Requests for the rows where `fresh`; nothing is read of the other rows.

    Attributes:
        rows: each request's canvas, its end and its own key.
        numbers: the decoder's numbers (thresholds, temperature, top-p ...), one for each row: they live in the state
            and are replaced with the request.
    """

    fresh: Bool[Array, " B"]
    rows: Rows
    numbers: tuple[Array, ...]


@pytree
class ServeStep:
    """What one serve step gives: the state to go on from, the result of the rows that are not `live`, and its cost.

    The policies' final states are left in `state`.
    """

    state: State
    result: Result
    live: Bool[Array, " B"]
    steps: Int[Array, ""]  # steps of the whole batch; over a mesh, of the shard of rows that took most
    busy: Int[Array, ""]  # of their rows, those that a live request took part in


def blank(model: Model, layout: Layout, rows: int, length: int, decoder: Decoder) -> State:
    """A state of `rows` free slots with a canvas of `length`: nothing is to be generated yet.

    The decoder's numbers are made one for each row.
    """
    canvas = jnp.full((rows, length), model.config.eos_token_id, jnp.int32)
    zero = jnp.zeros((rows,), jnp.int32)
    keys = jnp.broadcast_to(jax.random.key(0), (rows,))
    reference = canvas if REFERENCE in decoder.policy.needs else None
    spread = with_numbers(decoder, (jnp.broadcast_to(number, (rows,)) for number in numbers_of(decoder)))
    return begin(model, layout, spread, Rows(canvas, zero, zero, keys, reference))


def refill(model: Model, layout: Layout, decoder: Decoder, state: State, incoming: Incoming) -> State:
    """`state` with the fresh rows at the beginning of their requests; the others are as they were.

    Every leaf of the state, of a policy's and a stopper's too, leads with B. The KV cache alone does not, and stays: a
    row that begins reads of it only what it has rebuilt.
    """
    begun = begin(model, layout, with_numbers(decoder, incoming.numbers), incoming.rows)
    kept = keep(incoming.fresh, *(dataclasses.replace(each, kv=None) for each in (begun, state)))
    return dataclasses.replace(kept, kv=state.kv)


def advance(
    model: Model,
    params: Params,
    layout: Layout,
    decoder: Decoder,
    state: State,
    free: Int[Array, ""],
    most: Int[Array, ""],
) -> tuple[State, Int[Array, ""]]:
    """Step until `free` of the rows that are live now are done, or all, or `most` steps were taken: (state, steps)."""
    entered = live(model, state)

    def goes_on(carry: tuple[State, Int[Array, ""]]) -> Bool[Array, ""]:
        left = live(model, carry[0])
        return jnp.any(left) & (jnp.sum(entered & ~left, dtype=jnp.int32) < free) & (carry[1] < most)

    def once(carry: tuple[State, Int[Array, ""]]) -> tuple[State, Int[Array, ""]]:
        return step(model, params, layout, decoder, carry[0]), carry[1] + 1

    return jax.lax.while_loop(goes_on, once, (state, jnp.int32(0)))


def serve_step(
    model: Model,
    layout: Layout,
    params: Params,
    decoder: Decoder,
    state: State,
    incoming: Incoming,
    free: Int[Array, ""],
    most: Int[Array, ""],
) -> ServeStep:
    """`refill`, `advance`, `finish`: one program, for the caller to compile. `state` may be donated.

    Args:
        layout: its `first` and the canvas' length are those of the slots.
        decoder: what all requests share; its numbers are not read, but those of the state.
        free: leave the loop once so many rows are done. 1 wastes no forward on an empty slot; more saves round trips
            to the host, where those cost more than a forward. Over a mesh each shard of rows leaves its own loop so.
        most: leave the loop after so many steps, done or not: a server streams what is committed until then.
    """
    arguments = (params, decoder, state, incoming, free, most)
    program = functools.partial(_serve_step, model, layout)
    if layout.mesh is not None:
        rows = jax.tree.map_with_path(lambda path, _: KV_ROWS if path[0].name == "kv" else ROWS, state)
        specs = (WHOLE, specs_of(decoder), rows, ROWS, WHOLE, WHOLE)
        program = over_data(program, layout.mesh, specs, (rows, *[ROWS] * 4))
    after, result, left, steps, busy = program(*arguments)
    return ServeStep(after, result, left, steps=jnp.max(steps), busy=jnp.sum(busy, dtype=jnp.int32))


def _serve_step(
    model: Model,
    layout: Layout,
    params: Params,
    decoder: Decoder,
    state: State,
    incoming: Incoming,
    free: Int[Array, ""],
    most: Int[Array, ""],
) -> tuple[State, Result, Bool[Array, " B"], Int[Array, " 1"], Int[Array, " 1"]]:
    """What `ServeStep` holds, of one shard of rows."""
    begun = refill(model, layout, decoder, state, incoming)
    after, steps = advance(model, params, layout, decoder, begun, free, most)
    result = dataclasses.replace(finish(model, layout, after), policy=())
    busy = jnp.sum(after.nfe - begun.nfe, dtype=jnp.int32, keepdims=True) // model.copies
    return after, result, live(model, after), steps[None], busy


def repad(model: Model, by: int, state: State) -> State:
    """`state` on a canvas with `by` more columns of padding on the left, or, negative, with fewer.

    Rows keep their absolute positions, so that answers do not change. What is cut off must be padding in every live
    row. A policy's or stopper's state must not depend on the canvas' length.
    """
    rows = state.rows
    return dataclasses.replace(
        state,
        rows=dataclasses.replace(
            rows,
            canvas=shift_columns(rows.canvas, by, model.config.eos_token_id),
            reference=None if rows.reference is None else shift_columns(rows.reference, by, 0),
            origin=jnp.maximum(rows.origin + by, 0),
            last=rows.last + by,
        ),
        given=shift_columns(state.given, by, True),
        commit_step=shift_columns(state.commit_step, by, -1),
        log_prob=shift_columns(state.log_prob, by, 0.0),
        end=state.end + by,
        start=state.start + by,
        kv=kvcache.repad(state.kv, by),
    )
