"""The decode: one compiled `while_loop` that Python never steps.

    begin -> State -> while any row is unfinished: step -> finish -> Result

    step:  canvas [B L] -> one forward (`forward.py`) -> the row's block [B W] scored -> policy.select
           -> the loop commits, forces the best where nothing was -> stopper may move the end left

Each row stands in its own block: the one of its leftmost mask. The three functions are pure and public, so that a
plain Python loop over `step`, or a serving engine, gives what the compiled loop gives.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Key

from jaxdiff.decode.cache import Place
from jaxdiff.decode.forward import Forward
from jaxdiff.decode.score import NEVER
from jaxdiff.decode.state import Settings, State, first_block, fold, holes
from jaxdiff.parallel import over_rows
from jaxdiff.types import NEAR_TIE, Model, Params, Progress, Proposal, Remembering, Score, pytree
from jaxdiff.windows import put, take


class Reason(enum.IntEnum):
    """Why a row ended."""

    FULL = 0  # no mask was left on the canvas
    STOPPED = 1  # the stopper moved its end left


@pytree
class Result:
    """What a decode returns; all per row.

    Attributes:
        tokens: the canvas, prompt included; generated positions past a moved end hold end-of-text.
        lengths: generated tokens through the first end-of-text (it included), the numerator of TPF.
        nfe: forwards that the row took part in while live; a guided one counts 2, one that only stores keys and
            values (cache `block`) counts too.
        commit_step: the row's forward (from 0, without those that only store) at which each generated position was
            committed; -1 for what was given, and past the end.
        reason: a `Reason`.
        near_ties: decisions that hung on less than 1e-5: between the logits of a committed token and the next best
            one, between the priorities of the last position let in and the first left out (log-odds for a policy
            that ranks by them), or between a position's score and the policy's threshold.
        policy: the policy's final state (a recorder's recording).
    """

    tokens: Int[Array, "B L"]
    lengths: Int[Array, " B"]
    nfe: Int[Array, " B"]
    commit_step: Int[Array, "B G"]
    reason: Int[Array, " B"]
    near_ties: Int[Array, " B"]
    policy: Any


def begin(
    model: Model,
    canvas: Int[Array, "B L"],
    origin: Int[Array, " B"],
    keys: Key[Array, " B"],
    settings: Settings,
) -> State:
    """The state before the first step: what is masked from `settings.first` on is to be generated."""
    rows, length = canvas.shape
    zero, memory = jnp.zeros((rows,), jnp.int32), None
    if settings.cache.window != "canvas" and isinstance(model, Remembering):
        memory = model.memory(rows * settings.copies, length)
    column = jnp.arange(length, dtype=jnp.int32)[None]
    end = zero + length
    if settings.overhang:  # the end of the block that holds the last position kept
        end = origin + -(-(length - settings.overhang - origin) // settings.block_length) * settings.block_length
    return State(
        canvas=canvas,
        given=(canvas != model.config.mask_token_id) | (column < jnp.maximum(settings.first, origin[:, None])),
        origin=origin,
        end=end,
        keys=keys,
        start=zero - 1,
        block_step=zero,
        row_step=zero,
        nfe=zero,
        near_ties=zero,
        commit_step=jnp.full((rows, length), -1, jnp.int32),
        policy=settings.policy.init(rows, settings.block_length),
        stop=settings.stop.init(rows),
        memory=memory,
    )


def step(model: Model, params: Params, settings: Settings, state: State) -> State:
    """One forward for the whole batch; rows without holes are left as they are."""
    policy, stop, window = settings.policy, settings.stop, settings.block_length
    open_ = holes(model, state)
    live = jnp.any(open_, axis=1)
    first = first_block(settings, state.origin)
    block = (jnp.argmax(open_, axis=1).astype(jnp.int32) - first) // window
    start = jnp.where(live, first + block * window, state.start.clip(min=first))
    block_step = jnp.where(start == state.start, state.block_step, 0)

    place = Place(
        origin=state.origin,
        first=jnp.broadcast_to(jnp.asarray(first, jnp.int32), start.shape),
        before=state.start,
        start=start,
        block_step=block_step,
        row_step=state.row_step,
        block=window,
    )
    decides = live & ~settings.cache.stores(place)
    score, tail, memory = Forward(model, params, settings, state, live, open_ & decides[:, None], place).read()
    step_keys = fold(fold(state.keys, state.row_step), 1)
    proposal, policy_state = policy.select(state.policy, score, step_keys)
    commit, contest = _resolve(proposal, score, policy.waits)

    close = (commit & (score.gap < NEAR_TIE)) | (score.eligible & proposal.close)
    canvas = put(state.canvas, jnp.where(commit, proposal.token, take(state.canvas, start, window)), start)
    trace = jnp.where(commit, state.row_step[:, None], take(state.commit_step, start, window))
    progress = Progress(
        canvas=canvas,
        end=state.end,
        live=decides,
        generated=~state.given,
        score=score,
        accepted=proposal.accepted & score.eligible,
        tail=tail,
        mask_id=model.config.mask_token_id,
        eos_ids=model.config.eos_ids,
    )
    end, stop_state = stop.update(state.stop, progress)
    count = decides.astype(jnp.int32)
    return dataclasses.replace(
        state,
        canvas=canvas,
        end=jnp.where(decides, jnp.minimum(end, state.end), state.end),
        start=start,
        block_step=block_step + count,
        row_step=state.row_step + count,
        nfe=state.nfe + settings.copies * live.astype(jnp.int32),
        near_ties=state.near_ties + jnp.sum(close, axis=1, dtype=jnp.int32) + contest.astype(jnp.int32),
        commit_step=put(state.commit_step, trace, start),
        policy=keep(decides, policy_state, state.policy),
        stop=keep(decides, stop_state, state.stop),
        memory=memory,
    )


def finish(model: Model, settings: Settings, state: State) -> Result:
    """The result of rows that are done; what overhangs is cut off."""
    length = state.canvas.shape[1] - settings.overhang
    column = jnp.arange(length, dtype=jnp.int32)[None]
    generated = ~state.given[:, :length]
    past = generated & (column >= state.end[:, None])
    tokens = jnp.where(past, model.config.eos_token_id, state.canvas[:, :length])
    is_end = jnp.zeros(tokens.shape, bool)
    for token in model.config.eos_ids:
        is_end |= tokens == token
    first_end = jnp.min(jnp.where(is_end & generated, column, length), axis=1, keepdims=True)
    return Result(
        tokens=tokens,
        lengths=jnp.sum(generated & (column <= first_end), axis=1, dtype=jnp.int32),
        nfe=state.nfe,
        commit_step=jnp.where(past, -1, state.commit_step[:, :length])[:, settings.first :],
        reason=jnp.where(state.end < length, Reason.STOPPED.value, Reason.FULL.value).astype(jnp.int32),
        near_ties=state.near_ties,
        policy=state.policy,
    )


@functools.partial(jax.jit, static_argnums=0)
def run(
    model: Model,
    params: Params,
    canvas: Int[Array, "B L"],
    origin: Int[Array, " B"],
    keys: Key[Array, " B"],
    settings: Settings,
) -> Result:
    """`begin`, `step` until no row is live, `finish`: one program; over a mesh, one loop for each shard of rows."""

    def program(params: Params, canvas: Any, origin: Any, keys: Any, settings: Settings) -> Result:
        state = jax.lax.while_loop(
            lambda state: jnp.any(holes(model, state)),
            lambda state: step(model, params, settings, state),
            begin(model, canvas, origin, keys, settings),
        )
        return finish(model, settings, state)

    arguments = (params, canvas, origin, keys, settings)
    if settings.mesh is None:
        return program(*arguments)
    return over_rows(program, settings.mesh, *arguments, dead=model.config.eos_token_id)


def _resolve(proposal: Proposal, score: Score, waits: bool) -> tuple[Bool[Array, "B W"], Bool[Array, " B"]]:
    """What is committed, and whether the choice of positions was a near-tie."""
    commit = proposal.commit & score.eligible
    # A NaN ranks last, and nobody who is eligible ranks with those who are not: a broken model still ends.
    finite = jnp.nan_to_num(proposal.priority, nan=NEVER, neginf=NEVER)
    priority = jnp.where(score.eligible, finite, -jnp.inf)
    if not waits:
        best = jnp.arange(priority.shape[1])[None] == jnp.argmax(priority, axis=1, keepdims=True)
        commit = jnp.where(jnp.any(commit, axis=1, keepdims=True), commit, best & score.eligible)
    lowest_in = jnp.min(jnp.where(commit, priority, jnp.inf), axis=1)
    highest_out = jnp.max(jnp.where(score.eligible & ~commit, priority, -jnp.inf), axis=1)
    put_off = highest_out <= NEVER  # end-of-texts put off tie with each other by intent
    return commit, (jnp.abs(lowest_in - highest_out) < NEAR_TIE) & ~put_off


def keep(live: Bool[Array, " B"], new: Any, old: Any) -> Any:
    """`new` in live rows, `old` elsewhere; every leaf of a policy's or stopper's state leads with B."""
    return jax.tree.map(lambda a, b: jnp.where(live.reshape(-1, *[1] * (a.ndim - 1)), a, b), new, old)
