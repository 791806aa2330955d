"""The policy that draws: near the one that decodes, and its records say what it saw and did."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import InputError
from jaxdiff.policies import Explore, Learned
from jaxdiff.policies.filters import ConfidenceFilter, Evidence, LocalFilter, init_layers, local_width
from tests import small
from tests.policies.test_filters import evidence

pytestmark = pytest.mark.usefixtures("strict")
FEATURES = small.CONFIG.d_model
FILTER = LocalFilter(
    jax.tree.map(lambda x: 4 * x, init_layers(jax.random.key(1), (local_width(1, FEATURES), 8, 1))), 1, FEATURES
)
LEARNED = Learned(FILTER, 0.6)


@functools.cache
def explored(temperature=1.0, **options):
    """One program for all: of S = 3 steps, which not all rows get by with."""
    return small.decode(policy=Explore(LEARNED, temperature, steps=3, features=FEATURES), **options)


def test_at_a_low_temperature_it_is_the_policy_that_decodes():
    drawn, learned = explored(1e-3), small.decode(policy=LEARNED)
    for field in ("tokens", "commit_step", "nfe"):
        np.testing.assert_array_equal(getattr(drawn, field), getattr(learned, field))
    assert set(np.asarray(learned.nfe)) != {small.GEN}


def test_the_records_are_what_it_saw_and_drew():
    """Recomputed from them, a coin's log-odds are those of the decode; what was drawn is what was committed."""
    result = jax.device_get(explored())
    draws, commit_step = result.policy, result.commit_step
    np.testing.assert_array_equal(draws.steps, np.minimum(result.nfe, 3))
    assert (result.nfe > 3).any()
    names = [field.name for field in dataclasses.fields(Evidence)]
    flat = [getattr(draws, name).reshape(-1, *getattr(draws, name).shape[2:]) for name in names]
    again = np.asarray(LEARNED.slack(Evidence(*map(jnp.asarray, flat)))).reshape(draws.coin.shape)
    told = 0
    for row, count in enumerate(draws.steps):
        np.testing.assert_allclose(again[row, :count], draws.coin[row, :count], rtol=1e-4, atol=1e-5)
        assert not draws.open[row, count:].any()
        for step in range(count):
            drawn = draws.commit[row, step]
            assert not (drawn & ~draws.open[row, step]).any()
            assert not (draws.open[row, step] & ~draws.masked[row, step]).any()
            assert (commit_step[row] == step).sum() == max(drawn.sum(), 1)  # the forced one is no draw
            told += drawn.any()
    assert told


def test_a_coin_falls_as_often_as_its_log_odds_say():
    results = [jax.device_get(explored(seed=seed)).policy for seed in range(40)]
    first = results[0]  # the first step sees the same whatever is drawn
    chance = 1 / (1 + np.exp(-np.asarray(first.coin[:, 0], np.float64)))
    open_ = first.open[:, 0]
    share = np.mean([draws.commit[:, 0] for draws in results], axis=0)
    deviation = np.sqrt(chance * (1 - chance) / len(results)) + 1e-3
    assert (np.abs(share - chance)[open_] < 4.5 * deviation[open_]).all()
    assert chance[open_].min() < 0.8 < chance[open_].max()


def test_what_a_row_draws_is_its_own():
    """Its place in the batch and its neighbours change nothing, but for the rounding of what was seen."""
    order = (2, 0, 3, 1)
    one, two = jax.device_get((explored(), explored(order=order)))
    for field in ("tokens", "nfe", "commit_step"):
        np.testing.assert_array_equal(getattr(two, field), getattr(one, field)[list(order)])
    for here, there in zip(jax.tree.leaves(one.policy), jax.tree.leaves(two.policy), strict=True):
        np.testing.assert_allclose(here[list(order)], there, rtol=1e-4, atol=1e-4)


def test_a_threshold_at_which_nothing_is_drawn_is_refused():
    for tau in (0.0, 1.0):
        with pytest.raises(InputError, match=r"tau: found .* expected a number between 0 and 1"):
            Explore(Learned(FILTER, tau))


def test_a_filter_of_confidences_sees_nothing_else():
    seen, reach = evidence(), 2
    judge = ConfidenceFilter(init_layers(jax.random.key(0), (ConfidenceFilter((), reach).width, 8, 1)), reach)
    found, other = np.asarray(judge.inputs(seen)), evidence(seed=1).hidden
    blind = dataclasses.replace(seen, runner_up=seen.runner_up + 0.1, entropy=seen.entropy * 2, hidden=other)
    np.testing.assert_array_equal(judge(seen), judge(dataclasses.replace(blind, block_step=seen.block_step + 3)))
    odds, masked = np.asarray(seen.log_odds, np.float64), np.asarray(seen.masked, np.float64)
    for b, i in np.ndindex(*odds.shape):
        wanted = []
        for j in range(i - reach, i + reach + 1):
            inside = 0 <= j < odds.shape[1]
            wanted += [odds[b, j] / 8, 1 / (1 + np.exp(-odds[b, j])), masked[b, j], 1.0] if inside else [0.0] * 4
        np.testing.assert_allclose(found[b, i], wanted, atol=1e-5)
