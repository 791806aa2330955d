"""`Result.log_prob` and `Score.standing` against a log-softmax in float64 of the canvas as it stood."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.policies import Oracle, Threshold
from jaxdiff.policies.base import PolicyBase
from jaxdiff.pytree import number, pytree
from jaxdiff.types import NEVER
from tests import reference, small
from tests.cached import whole

pytestmark = pytest.mark.usefixtures("strict")
CUTS = {"plain": {}, "cut": {"top_p": 0.7, "top_k": 5}, "guided": {"cfg_scale": 0.8}}


def canvas_before(result, row, prompt, step):
    """The row alone as its forward `step` saw it; nothing was taken back."""
    answer = np.asarray(result.tokens[row, -small.GEN :])
    hidden = np.asarray(result.commit_step[row]) >= step
    return np.array([*prompt, *np.where(hidden, small.MASK, answer)])


def log_softmax(x, first, model, cfg=None):
    """Of the float64 model at each position of x, without [MASK]."""
    table = whole(small.params(0, model), x, model)
    if cfg is not None:
        blind = np.where(np.arange(len(x)) < first, small.MASK, x)
        unseeing = whole(small.params(0, model), blind, model)
        table = unseeing + (cfg + 1) * (table - unseeing)
    table[:, small.MASK] = -np.inf
    return reference.log_softmax(table)


def assert_by_hand(result, model, cfg=None):
    assert np.isfinite(np.asarray(result.log_prob)).all()
    for row, prompt in enumerate(small.PROMPTS):
        trace, first = np.asarray(result.commit_step[row]), len(prompt)
        for step in range(trace.max() + 1):
            expected = log_softmax(canvas_before(result, row, prompt, step), first, model, cfg)
            at = np.flatnonzero(trace == step)
            tokens = np.asarray(result.tokens[row, -small.GEN :])[at]
            np.testing.assert_allclose(result.log_prob[row, at], expected[first + at, tokens], atol=2e-4)


@pytest.mark.parametrize("sampling", CUTS)
@pytest.mark.parametrize("model", [small.MODEL, small.DREAM], ids=["llada", "dream"])
def test_it_is_that_of_each_token_when_it_was_written(model, sampling):
    """Before temperature and cuts, whatever these are."""
    for temperature in (0.0, 0.7):
        options = dict(policy=Threshold(0.5), temperature=temperature, **CUTS[sampling])
        assert_by_hand(small.decode(model=model, **options), model, CUTS[sampling].get("cfg_scale"))


@pytest.mark.parametrize(("model", "sampling"), [(small.MODEL, "plain"), (small.DREAM, "cut")], ids=["llada", "dream"])
def test_it_is_that_of_tokens_that_a_reference_forces(model, sampling):
    """However unlikely they are, and though they were cut."""
    draw = np.random.default_rng(0).integers(5, small.VOCAB, (4, small.GEN))
    given = jnp.asarray(np.concatenate([small.batch()[0], draw], axis=1), jnp.int32)
    result = small.decode(model=model, policy=Oracle(), reference=given, temperature=0.7, **CUTS[sampling])
    np.testing.assert_array_equal(np.asarray(result.tokens)[:, -small.GEN :], draw)
    assert np.asarray(result.log_prob).min() < -10
    assert_by_hand(result, model)


@pytree
class Twice(PolicyBase):
    """Commits the whole block in its first step, holds it, and in the second edits the first `edits` positions."""

    edits: object = number(default=0, low=0, high=100, whole=True)

    revises = True

    def budget(self, rows, window):
        return jnp.full((rows,), 2, jnp.int32)

    def select(self, state, score, key):
        proposal = Threshold(0.0).select((), score, key)[0]
        position = jnp.arange(score.masked.shape[1], dtype=jnp.int32)[None]
        edit = jnp.broadcast_to(position < self.edits, score.masked.shape)
        return dataclasses.replace(proposal, edit=edit, hold=score.block_step < 1), state


@pytest.mark.parametrize("model", [small.MODEL, small.DREAM], ids=["llada", "dream"])
def test_an_edit_is_of_the_pass_that_made_it(model):
    options = dict(model=model, temperature=0.7, block_length=small.GEN)
    before, after = (small.decode(policy=Twice(edits), **options) for edits in (0, 11))
    for result in (before, after):
        assert result.nfe.tolist() == [2] * 4
    assert (np.asarray(before.tokens) != np.asarray(after.tokens)).any()
    np.testing.assert_array_equal(np.asarray(before.commit_step), 0)
    np.testing.assert_array_equal(np.asarray(after.commit_step), [[1] * 11 + [0] * 5] * 4)
    np.testing.assert_array_equal(np.asarray(before.tokens)[:, -5:], np.asarray(after.tokens)[:, -5:])
    np.testing.assert_array_equal(np.asarray(before.log_prob)[:, -5:], np.asarray(after.log_prob)[:, -5:])
    for row, prompt in enumerate(small.PROMPTS):
        first, last = (np.asarray(result.tokens[row, -small.GEN :]) for result in (before, after))
        expected = log_softmax(np.array([*prompt, *first]), len(prompt), model)[len(prompt) + np.arange(11), last[:11]]
        np.testing.assert_allclose(after.log_prob[row, :11], expected, atol=2e-4)


@pytree
class Spy(PolicyBase):
    """A threshold; the final state is the block of one step as the policy saw it: (start, standing)."""

    when: object = number(default=0, low=0, high=100, whole=True)

    def init(self, rows, window):
        return jnp.zeros((rows,), jnp.int32), jnp.zeros((rows, window))

    def select(self, state, score, key):
        now = score.row_step == self.when
        start = jnp.where(now, score.start - score.origin, state[0])
        standing = jnp.where(now[:, None], score.standing, state[1])
        return Threshold(0.5).select((), score, key)[0], (start, standing)


@pytest.mark.parametrize("model", [small.MODEL, small.DREAM], ids=["llada", "dream"])
def test_a_policy_sees_the_log_prob_of_what_stands_there(model):
    for when in (0, 2, 5):
        result = small.decode(model=model, policy=Spy(when), temperature=0.7, top_k=5)
        start, standing = (np.asarray(x) for x in result.policy)
        for row, prompt in enumerate(small.PROMPTS):
            if when >= result.nfe[row]:
                continue
            x = canvas_before(result, row, prompt, when)
            block = np.arange(start[row], start[row] + small.BLOCK)
            expected, masked = log_softmax(x, len(prompt), model)[block, x[block]], x[block] == small.MASK
            assert (standing[row][masked] <= NEVER).all()
            np.testing.assert_allclose(standing[row][~masked], expected[~masked], atol=2e-4)
