"""Slots: rows of a state that are given a new request as soon as the last one is done. Pure functions, all compiled.

    begin -> State -> [ refill -> advance -> finish ] -> State -> [ ... ]      one `serve_step` is one compiled program
                        |  rows that are free begin another request
                                  |  a `while_loop` over `step`, until rows are done or the bound on steps is reached

This is what a serving engine embeds: it owns the queue, calls `serve_step` with what came in, and takes the rows that
are not live out of the result. Shapes are those of the slots and of the canvas, so nothing recompiles for a new
request. Rows do not see each other, so a request's answer does not depend on its slot, on its neighbours or on when it
came in. `engine.py` is such an engine, for a queue that is read in order.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jaxdiff import kvcache
from jaxdiff.decode.layout import Layout, Setup
from jaxdiff.decode.loop import begin, settled, step
from jaxdiff.decode.result import Result, finish
from jaxdiff.decode.state import Rows, State, keep, live
from jaxdiff.kvcache import shift_columns
from jaxdiff.parallel.mesh import KV_ROWS, ROWS, WHOLE, over_data, specs_of
from jaxdiff.pytree import pytree, with_numbers


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
    """What one serve step gives: the state to go on from, the result of the rows, and its cost.

    The result of a row that is `live` is what there is of it so far; left of column `settled` it will not change. The
    policies' final states are left in `state`.
    """

    state: State
    result: Result
    live: Bool[Array, " B"]
    settled: Int[Array, " B"]
    steps: Int[Array, ""]  # steps of the whole batch; over a mesh, of the shard of rows that took most
    busy: Int[Array, ""]  # of their rows, those that a live request took part in


def refill(setup: Setup, state: State, incoming: Incoming) -> State:
    """`state` with the fresh rows at the beginning of their requests; the others are as they were.

    Every leaf of the state, of a policy's and a stopper's too, leads with B. The KV caches alone do not, and stay: a
    row that begins gives no weight to what it has not rebuilt. No weight times NaN is NaN, though: what a row whose
    scores were no numbers has left is emptied.
    """
    spoilt = incoming.fresh & (state.not_finite > 0)
    kv, guide_kv = jax.lax.cond(
        jnp.any(spoilt), lambda kv: kvcache.emptied(kv, spoilt), lambda kv: kv, (state.kv, state.guide_kv)
    )
    decoder = with_numbers(setup.decoder, incoming.numbers)
    begun = begin(dataclasses.replace(setup, decoder=decoder), incoming.rows)
    kept = keep(incoming.fresh, *(dataclasses.replace(each, kv=None, guide_kv=None) for each in (begun, state)))
    return dataclasses.replace(kept, kv=kv, guide_kv=guide_kv)


def advance(setup: Setup, state: State, free: Int[Array, ""], most: Int[Array, ""]) -> tuple[State, Int[Array, ""]]:
    """Step until `free` of the rows that are live now are done, or all, or `most` steps were taken: (state, steps)."""
    entered = live(setup.model, state)

    def goes_on(carry: tuple[State, Int[Array, ""]]) -> Bool[Array, ""]:
        left = live(setup.model, carry[0])
        return jnp.any(left) & (jnp.sum(entered & ~left, dtype=jnp.int32) < free) & (carry[1] < most)

    return jax.lax.while_loop(goes_on, lambda carry: (step(setup, carry[0]), carry[1] + 1), (state, jnp.int32(0)))


def serve_step(setup: Setup, state: State, incoming: Incoming, free: Int[Array, ""], most: Int[Array, ""]) -> ServeStep:
    """`refill`, `advance`, `finish`: one program, for the caller to compile. `state` may be donated.

    Args:
        setup: what all requests share; the decoder's numbers are not read, but those of the state.
        state: of the step before; at first, `begin` of a decoder with numbers for each row and of rows that generate
            nothing.
        free: leave the loop once so many rows are done. 1 wastes no forward on an empty slot; more saves round trips
            to the host, where those cost more than a forward. Over a mesh each shard of rows leaves its own loop so.
        most: leave the loop after so many steps, done or not: a server streams what is committed until then.
    """

    def on_shard(setup: Setup, state: State, incoming: Incoming, free: Array, most: Array) -> tuple[Any, ...]:
        begun = refill(setup, state, incoming)
        after, steps = advance(setup, begun, free, most)
        result = dataclasses.replace(finish(setup, after), policy=())
        left, revises = live(setup.model, after), setup.decoder.policy.revises
        busy = jnp.sum(after.nfe - begun.nfe, dtype=jnp.int32, keepdims=True) // setup.model.copies
        return after, result, left, settled(setup.model, after, after.start, left & revises), steps[None], busy

    program, mesh = on_shard, setup.layout.mesh
    if mesh is not None:
        caches = ("kv", "guide_kv")
        rows = jax.tree.map_with_path(lambda path, _: KV_ROWS if path[0].name in caches else ROWS, state)
        program = over_data(on_shard, mesh, (specs_of(setup), rows, ROWS, WHOLE, WHOLE), (rows, *[ROWS] * 5))
    after, result, left, fixed, steps, busy = program(setup, state, incoming, free, most)
    return ServeStep(after, result, left, fixed, steps=jnp.max(steps), busy=jnp.sum(busy, dtype=jnp.int32))


def repad(setup: Setup, before: Layout, state: State) -> State:
    """`state`, laid out as `before`, on the canvas of the setup: with more padding on the left, or with less.

    Rows keep their absolute positions, so that answers do not change. What is cut off must be padding in every live
    row. A policy's or stopper's state must not depend on the canvas' length.
    """
    rows, by = state.rows, setup.layout.first - before.first
    return dataclasses.replace(
        state,
        rows=dataclasses.replace(
            rows,
            canvas=shift_columns(rows.canvas, by, setup.model.config.eos_token_id),
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
        guide_known=jnp.maximum(state.guide_known + by, 0),
        guide_kv=kvcache.repad(state.guide_kv, by),
    )
