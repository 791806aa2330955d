"""Rule 1 against a policy that keeps to nothing: what it may touch, how long it may hold, and that a decode ends."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdiff.decode import api, loop
from jaxdiff.decode.state import holes, live
from jaxdiff.fills import Parallel, Recap
from jaxdiff.policies import RemdmCap, RemdmLoop
from jaxdiff.policies.base import PolicyBase
from jaxdiff.policies.order import uniform
from jaxdiff.pytree import number, pytree
from jaxdiff.stoppers import Eos, NoStop
from jaxdiff.types import Proposal
from tests import small
from tests.conformance.each_row import EachRow

pytestmark = pytest.mark.usefixtures("strict")
CHANCE = st.sampled_from([0.0, 0.5, 1.0])
CHANCES = st.fixed_dictionaries(dict.fromkeys(("commits", "remasks", "edits", "holds"), CHANCE))


@pytree
class Unruly(PolicyBase):
    """Commits, remasks, edits and holds at random or always, wherever it pleases; it may name any id at all."""

    patience: object = number(default=3, low=0, high=100, whole=True)
    commits: object = number(default=0.5, low=0, high=1)
    remasks: object = number(default=1.0, low=0, high=1)
    edits: object = number(default=0.5, low=0, high=1)
    holds: object = number(default=1.0, low=0, high=1)

    waits = True
    revises = True

    def budget(self, rows, window):
        return jnp.broadcast_to(jnp.asarray(self.patience), (rows,))

    def select(self, state, score, key):
        drawn = [uniform(jax.vmap(jax.random.fold_in, (0, None))(key, i), score.positions) for i in range(6)]
        commit, remask, edit = (
            draw < chance for draw, chance in zip(drawn, (self.commits, self.remasks, self.edits), strict=False)
        )
        ids = jnp.floor(drawn[3] * (small.VOCAB + 20)).astype(jnp.int32) - 10
        return Proposal(
            commit=commit,
            accepted=commit,
            close=jnp.zeros_like(commit),
            priority=jnp.where(drawn[4] < 0.2, jnp.nan, drawn[4]),
            token=jnp.where(drawn[5] < 0.3, small.MASK, jnp.where(drawn[5] < 0.6, ids, score.token)),
            remask=remask,
            edit=edit,
            hold=drawn[5][:, 0] < self.holds,
        ), state


@pytree
class Idle(Parallel):
    """A fill that writes nothing of what it is given."""

    def write(self, state, score, proposal, commit, passes, key):
        written, state = super().write(state, score, proposal, commit, passes, key)
        return dataclasses.replace(written, commit=jnp.zeros_like(commit)), state


def assert_in_the_vocabulary(tokens):
    answer = np.asarray(tokens)[:, -small.GEN :]
    assert ((answer >= 0) & (answer < small.VOCAB) & (answer != small.MASK)).all()


@pytest.mark.parametrize("fill", [{}, {"fill": Recap(3)}, {"fill": Idle()}], ids=["parallel", "recap", "idle"])
@settings(max_examples=8)
@given(chances=CHANCES, patience=st.integers(0, 9), seed=st.integers(0, 3))
def test_it_ends_within_the_bound_and_leaves_no_mask(fill, chances, patience, seed):
    """After `budget` steps each one commits, so that a block of W takes at most budget + W."""
    result = small.decode(policy=Unruly(patience, **chances), seed=seed, **fill)
    assert_in_the_vocabulary(result.tokens)
    assert (np.asarray(result.nfe) <= small.GEN // small.BLOCK * (patience + small.BLOCK)).all()
    assert np.isfinite(np.asarray(result.log_prob)).all()
    assert (
        (np.asarray(result.commit_step) >= 0) & (np.asarray(result.commit_step) < np.asarray(result.nfe)[:, None])
    ).all()


_STEPS = {}


def stepped(policy, seed):
    """A decode by hand: (state, the next one) of each step. Rows have more and fewer holes, and end apart."""
    canvas = np.random.default_rng(seed).integers(5, small.VOCAB, (4, small.GEN))
    for row in range(4):
        canvas[row, row::2] = small.MASK
    canvas[3, : small.BLOCK] = 7
    call = api.prepare_infill(
        small.MODEL, small.params(), canvas, small.decoder(policy=policy), key=small.keys(4, seed)
    )
    if not _STEPS:  # numbers live in the state: one program for all
        _STEPS["step"] = jax.jit(lambda state: loop.step(call.setup, state))
    state = loop.begin(call.setup, call.rows)
    while bool(live(call.setup.model, state).any()):
        after = _STEPS["step"](state)
        yield state, after
        state = after


@settings(max_examples=8)
@given(chances=CHANCES, patience=st.integers(1, 6), seed=st.integers(0, 3))
def test_it_changes_what_it_may_in_its_block_alone_and_holds_it_within_its_budget(chances, patience, seed):
    small.params()  # not while tracing: it is kept
    policy = Unruly(patience, **chances)
    for state, after in stepped(policy, seed):
        before, now = np.asarray(state.rows.canvas), np.asarray(after.rows.canvas)
        start, alive = np.asarray(after.start)[:, None], np.asarray(live(small.MODEL, state))
        column = np.arange(now.shape[1])[None]
        may_change = (column >= start) & (column < start + small.BLOCK) & alive[:, None] & ~np.asarray(state.given)
        assert not ((before != now) & ~may_change).any()
        heeded = np.asarray(after.block_step) <= patience  # counted with this step
        revised = (before != now) & (before != small.MASK)
        assert not (revised & ~heeded[:, None]).any()
        assert not (np.asarray(after.holds) & ~heeded).any()
        masked = np.asarray(holes(small.MODEL, state)).sum(1) - np.asarray(holes(small.MODEL, after)).sum(1)
        assert (masked[alive & ~heeded & ~np.asarray(state.holds)] > 0).all()  # it commits
        if chances["remasks"] == 0.0:
            assert not ((now == small.MASK) & (before != small.MASK)).any()  # no edit ever writes [MASK]
        if chances["holds"] == 1.0:
            moved = alive & (np.asarray(after.start) != np.asarray(state.start)) & (np.asarray(state.start) >= 0)
            assert (np.asarray(state.block_step)[moved] > patience).all()  # no block is left before its budget


REVISING = (
    RemdmCap(steps=6, cap=0.4),
    RemdmLoop(steps=9, loop=0.5, alpha=0.7),
    Unruly(patience=4, commits=0.5, remasks=0.5, edits=0.5, holds=0.5),
)


def test_eos_waits_until_the_text_is_settled():
    """Its text is that of the whole decode through the first end-of-text, though commits are taken back."""
    saved, changed = np.zeros(len(REVISING), int), np.zeros(len(REVISING), bool)
    which, prompts = np.repeat(np.arange(len(REVISING)), len(small.PROMPTS)), small.PROMPTS * len(REVISING)
    for seed in range(6):
        options = dict(policy=EachRow(REVISING, which), seed=seed, model_seed=seed % 3, temperature=0.7)
        whole, stopped, eager = (
            jax.device_get(small.decode(prompts=prompts, order=range(len(prompts)), stop=stop, **options))
            for stop in (NoStop(), Eos(), Eager())  # the last: the first end-of-text that stands, settled or not
        )
        np.testing.assert_array_equal(whole.lengths, stopped.lengths)
        for row, length in enumerate(np.asarray(whole.lengths)):
            end = whole.tokens.shape[1] - small.GEN + length
            np.testing.assert_array_equal(whole.tokens[row, :end], stopped.tokens[row, :end])
            np.testing.assert_array_equal(whole.commit_step[row, :length], stopped.commit_step[row, :length])
        np.add.at(saved, which, np.asarray(whole.nfe - stopped.nfe))
        np.logical_or.at(changed, which, np.asarray(eager.lengths != whole.lengths))
    assert (saved > 0).all()
    assert changed.all(), "the case does not exercise the rule"


@pytree
class Eager(Eos):
    """`Eos` as if all left of the first mask were settled."""

    def update(self, state, progress):
        masked = progress.generated & (progress.canvas == small.MASK)
        hole = jnp.where(jnp.any(masked, axis=1), jnp.argmax(masked, axis=1), masked.shape[1]).astype(jnp.int32)
        return super().update(state, dataclasses.replace(progress, settled=hole))
