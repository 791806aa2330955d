"""The decode: one compiled `while_loop` that Python never steps.

    begin -> State -> while any row is live: step -> finish -> Result

    place    which block each row stands in
    score    the one full pass -> Score [B W]
    guide    where there is one: what it says of the draft
    select   the policy: where
    resolve  what the loop makes of its proposal
    write    the fill: what
    allowed  what of it a constraint lets stand
    stop     the end may move left

The three functions are pure and public, so that a plain Python loop over `step`, or a serving engine, gives what the
compiled loop gives.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jaxdiff.decode.constrained import Writing
from jaxdiff.decode.encoded import pass_of
from jaxdiff.decode.guide_pass import GuidePass
from jaxdiff.decode.layout import Layout, Setup
from jaxdiff.decode.passes import StepPasses
from jaxdiff.decode.reached import begin_text, go_on
from jaxdiff.decode.rejected import Rejecting
from jaxdiff.decode.resolve import Choice, in_vocabulary, planted, resolve, seed_position, with_written
from jaxdiff.decode.result import Result, finish
from jaxdiff.decode.state import Rows, State, fold, holes, keep, live
from jaxdiff.parallel.mesh import over_rows
from jaxdiff.protocols import Model
from jaxdiff.pytree import numbers_of, with_numbers
from jaxdiff.types import Place, Progress, Proposal, Score, Written
from jaxdiff.windows import put, take


def begin(setup: Setup, rows: Rows) -> State:
    """The state before the first step."""
    model, layout, decoder = setup.model, setup.layout, setup.decoder
    count, length = rows.canvas.shape
    zero, column = jnp.zeros((count,), jnp.int32), jnp.arange(length, dtype=jnp.int32)[None]
    prompt = column < jnp.maximum(layout.first, rows.origin[:, None])
    given = (rows.canvas != model.config.mask_token_id) | prompt
    automaton = decoder.automaton
    return State(
        rows=rows,
        given=given,
        numbers=tuple(map(jnp.asarray, numbers_of(decoder))),
        end=layout.whole_blocks(rows.origin, rows.last),
        start=zero - 1,
        holds=jnp.zeros((count,), bool),
        still=jnp.zeros((count,), bool),
        block_step=zero,
        row_step=zero,
        nfe=zero,
        cheap=zero,
        work=zero.astype(jnp.float32),
        log_weight=zero.astype(jnp.float32),
        checks=zero,
        near_ties=zero,
        not_finite=zero,
        commit_step=jnp.full((count, length), -1, jnp.int32),
        log_prob=jnp.zeros((count, length), jnp.float32),
        policy=decoder.policy.init(count, layout.block_length),
        fill=decoder.fill.init(count, layout.block_length),
        stop=decoder.stop.init(count),
        text=() if decoder.stop_strings is None else decoder.stop_strings.init(count),
        reached=() if automaton is None else begin_text(setup, automaton, rows, given),
        kv=model.empty_kv(count, length) if decoder.keeps_kv else None,
        guide_nfe=zero,
        guide_known=rows.origin,
        guide_kv=None if setup.guide is None else setup.guide.model.empty_kv(count, length),
    )


def step(setup: Setup, state: State) -> State:
    """One step of the whole batch: one full pass; rows that are done are left as they are."""
    decoder, model, layout = with_numbers(setup.decoder, state.numbers), setup.model, setup.layout
    setup = dataclasses.replace(setup, decoder=decoder)
    policy, window, before = decoder.policy, layout.block_length, state
    takes_part, open_ = live(model, state), holes(model, state)
    place = next_place(layout, state, open_)
    decides = takes_part & ~decoder.cache.stores(place)
    named = seed_position(layout, place, state.given.shape[1])
    open_ &= decides[:, None] | (named & takes_part[:, None])
    seeding = jnp.any(open_, axis=1) & ~decides
    acts = decides | seeding

    score, tail, reading = pass_of(model)(setup, state, place, state.kv, open_=open_).run(takes_part)
    editable = score.editable & decides[:, None] & ~take(named, place.start, window)
    score, heard = dataclasses.replace(score, editable=editable), None
    if setup.guide is not None:
        heard = GuidePass(setup, state, place, state.guide_kv).run(score, decides & jnp.any(score.eligible, axis=1))
        score = dataclasses.replace(score, guide=heard.said)

    step_keys = fold(state.rows.keys, state.row_step)
    proposal, policy_state = policy.select(state.policy, score, fold(step_keys, 1))
    proposal = in_vocabulary(planted(proposal, score, seeding), score, model.config)
    choice = resolve(policy, proposal, score)
    passes = StepPasses(setup, state, place, reading.kv)
    with jax.named_scope("fill"):  # for who inspects the compiled program
        written, fill_state = decoder.fill.write(state.fill, score, proposal, choice.commit, passes, step_keys)
    choice, reached = with_written(choice, written), state.reached
    if decoder.automaton is not None:
        reached = go_on(setup, decoder.automaton, state, place.start)
    if (constraint := decoder.constraint) is not None:
        writes = Writing if constraint.estimator is None else Rejecting
        choice, written = writes(passes, constraint, reached, score, proposal).allowed(choice, written, acts)
    state = _changed(state, place, score, proposal, choice, written, model.config.mask_token_id)

    holes_left = holes(model, state)
    stays = choice.holds | jnp.any(take(holes_left, place.start, window), axis=1)
    heeded = place.block_step + 1 < policy.budget(place.start.shape[0], window)
    progress = Progress(
        canvas=state.rows.canvas,
        end=state.end,
        live=acts,
        generated=~state.given,
        settled=settled(model, state, place.start, stays & heeded & policy.revises),
        score=score,
        accepted=proposal.accepted & score.eligible,
        tail=tail,
        eos_ids=model.config.eos_ids,
        turn_ends=model.config.turn_ends,
    )
    end, stop_state = decoder.stop.update(state.stop, progress)
    end, text_state = jnp.minimum(end, state.end), state.text
    if decoder.stop_strings is not None:
        own = dataclasses.replace(decoder.stop_strings, strings=state.rows.strings)
        text_end, text_state = own.update(state.text, dataclasses.replace(progress, end=end))
        end = jnp.minimum(end, text_end)
    end = jnp.where(acts, end, state.end)
    count = acts.astype(jnp.int32)
    after = dataclasses.replace(
        state,
        end=end,
        start=place.start,
        holds=jnp.where(decides, choice.holds & (place.start < end), state.holds),
        still=jnp.where(takes_part, decides & ~choice.changes, state.still),
        block_step=place.block_step + decides.astype(jnp.int32),
        row_step=state.row_step + count,
        nfe=state.nfe + model.copies * takes_part.astype(jnp.int32),
        cheap=state.cheap + written.cheap * count,
        work=state.work + reading.work + written.work * count.astype(jnp.float32),
        policy=keep(decides, policy_state, state.policy),
        fill=keep(acts, fill_state, state.fill),
        stop=keep(acts, stop_state, state.stop),
        text=keep(acts, text_state, state.text),
        reached=reached,
        kv=reading.kv,
    )
    return after if heard is None else heard.kept_in(after, before)


def next_place(layout: Layout, state: State, open_: Bool[Array, "B L"]) -> Place:
    """Where each row stands in this step: in the block of its last one until no mask is left there and the policy does
    not hold; then in the next block with a mask.
    """
    first, window = layout.first_block(state.rows.origin), layout.block_length
    column = jnp.arange(open_.shape[1], dtype=jnp.int32)[None]
    here = (column >= state.start[:, None]) & (column < state.start[:, None] + window)
    stays = (state.start >= first) & (state.holds | jnp.any(open_ & here, axis=1))
    block = (jnp.argmax(open_, axis=1).astype(jnp.int32) - first) // window
    start = jnp.where(jnp.any(open_, axis=1) & ~stays, first + block * window, jnp.maximum(state.start, first))
    return Place(
        origin=state.rows.origin,
        first=first,
        before=state.start,
        start=start,
        begins_masked=jnp.take_along_axis(open_, start[:, None], axis=1)[:, 0],
        still=state.still,
        block_step=jnp.where(start == state.start, state.block_step, 0),
        row_step=state.row_step,
        block=window,
        attention_block=layout.attention_block,
    )


@jax.jit
def run(setup: Setup, rows: Rows) -> Result:
    """`begin`, `step` until no row is live, `finish`: one program; over a mesh, one loop for each shard of rows."""

    def program(setup: Setup, rows: Rows) -> Result:
        state = jax.lax.while_loop(
            lambda state: jnp.any(live(setup.model, state)), lambda state: step(setup, state), begin(setup, rows)
        )
        return finish(setup, state)

    if setup.layout.mesh is None:
        return program(setup, rows)
    return over_rows(program, setup.layout.mesh, setup, rows, dead=setup.model.config.eos_token_id)


def _changed(
    state: State, place: Place, score: Score, proposal: Proposal, choice: Choice, written: Written, mask_id: int
) -> State:
    """The state with what this step wrote and took back."""
    start, window = place.start, score.masked.shape[1]
    commit, edit, remask = choice.commit, choice.edit, choice.remask

    def replaced(old: Array, committed: Any, edited: Any, masked: Any) -> Array:
        new = jnp.where(commit, committed, jnp.where(edit, edited, take(old, start, window)))
        return put(old, jnp.where(remask, masked, new), start)

    canvas = replaced(state.rows.canvas, written.token, proposal.token, mask_id)
    now = score.row_step[:, None]
    # What a cheap pass says where the full pass, which counts its own, said a number.
    spoilt = commit & jnp.isfinite(score.log_prob) & ~jnp.isfinite(written.log_prob)
    close = (written.close & commit) | ((score.eligible | score.editable) & proposal.close)
    ties = jnp.sum(close, axis=1, dtype=jnp.int32) + choice.contest.astype(jnp.int32)
    return dataclasses.replace(
        state,
        rows=dataclasses.replace(state.rows, canvas=canvas),
        log_weight=state.log_weight if written.log_weight is None else state.log_weight + written.log_weight,
        checks=state.checks if written.checks is None else state.checks + written.checks,
        near_ties=state.near_ties + ties,
        not_finite=state.not_finite + score.not_finite + jnp.sum(spoilt, axis=1, dtype=jnp.int32),
        commit_step=replaced(state.commit_step, now, now, -1),
        log_prob=replaced(state.log_prob, written.log_prob, score.log_prob_of(proposal.token), 0.0),
    )


def settled(model: Model, state: State, start: Int[Array, " B"], unsettled: Bool[Array, " B"]) -> Int[Array, " B"]:
    """The first column that may still change: the first mask; the block's `start` where commits may be taken back."""
    length = state.given.shape[1]
    masked = ~state.given & (state.rows.canvas == model.config.mask_token_id)
    first_hole = jnp.min(jnp.where(masked, jnp.arange(length, dtype=jnp.int32)[None], length), axis=1)
    return jnp.where(unsettled, jnp.minimum(start, first_hole), first_hole)
