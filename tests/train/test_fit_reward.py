"""The gradient of a reward's expectation, found by trying all outcomes; what an update counts and what it does not."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import InputError
from jaxdiff.policies import Learned
from jaxdiff.policies.filters import BlockFilter, Linear
from jaxdiff.train.fit_reward import RewardRecipe, minibatches, surrogate
from jaxdiff.train.rollouts import Steps, advantages

TAU, TEMPERATURE = 0.7, 0.5
RNG = np.random.default_rng(0)
KERNEL, BIAS = RNG.normal(size=(2, 2)), RNG.normal(size=2)


def learned(kernel, bias):
    return Learned(BlockFilter((Linear(jnp.asarray(kernel, jnp.float32), jnp.asarray(bias, jnp.float32)),)), TAU)


def coins(kernel, bias, log_odds):
    """Log-odds of the draws, in float64."""
    seen = 1 / (1 + np.exp(-log_odds))
    return (seen @ kernel + bias - np.log(TAU / (1 - TAU))) / TEMPERATURE


def chance(coin, commit):
    return 1 / (1 + np.exp(np.where(commit, -coin, coin)))


def batch(log_odds, open_, commit, coin, advantage, weight):
    log_odds, coin = np.float32(log_odds), np.float32(coin)
    rows, zero = len(log_odds), np.zeros_like(log_odds)
    steps = Steps(
        log_odds=log_odds,
        runner_up=zero,
        entropy=zero,
        masked=np.ones_like(open_),
        block_step=np.zeros(rows, np.int32),
        hidden=np.zeros((*log_odds.shape, 0), np.float32),
        open=open_,
        commit=commit,
        coin=coin,
        advantage=np.float32(advantage),
        weight=np.float32(weight),
    )
    return jax.device_put(steps)


def test_the_gradient_is_that_of_the_expected_reward():
    """Two steps of two positions: the second sees what the first committed, and tosses no coin there."""
    worth = RNG.normal(size=(2, 2, 2, 2))
    first_seen, second_seen = RNG.normal(size=2) * 2, RNG.normal(size=(2, 2, 2)) * 2

    def paths():
        for commit in itertools.product((False, True), repeat=4):
            first, second = np.asarray(commit[:2]), np.asarray(commit[2:])
            if not (first & second).any():  # what is committed has no coin any more
                yield first, second, second_seen[tuple(map(int, first))], worth[tuple(map(int, commit))]

    def probability(kernel, bias, first, second, seen):
        one, two = coins(kernel, bias, first_seen), coins(kernel, bias, seen)
        return chance(one, first).prod() * np.where(first, 1.0, chance(two, second)).prod()

    def expected(kernel, bias):
        return sum(probability(kernel, bias, first, second, seen) * worth for first, second, seen, worth in paths())

    rows = []
    for first, second, seen, value in paths():
        weight, advantage = probability(KERNEL, BIAS, first, second, seen), value - 0.3  # any baseline
        rows.append((first_seen, [True, True], first, coins(KERNEL, BIAS, first_seen), advantage, weight))
        rows.append((seen, ~first, second, coins(KERNEL, BIAS, seen), advantage, weight))
    steps = batch(*map(np.asarray, zip(*rows, strict=True)))
    assert float(steps.weight.sum()) == pytest.approx(2.0, abs=1e-5)
    start = learned(KERNEL, BIAS)
    loss = functools.partial(surrogate, temperature=TEMPERATURE, clip=0.2, kl=0.7)
    found = jax.jit(jax.grad(loss))(start, start, steps)

    def slope(number):
        nudge = np.zeros(6)
        nudge[number] = 1e-5
        ends = [expected(KERNEL + s * nudge[:4].reshape(2, 2), BIAS + s * nudge[4:]) for s in (1, -1)]
        return (ends[0] - ends[1]) / 2e-5

    wanted = np.asarray([slope(number) for number in range(6)])
    layer = found.filter.layers[0]
    # The mean over two steps of each path; what is minimised is less the reward. At the start KL has no slope.
    got = -2.0 * np.concatenate([np.ravel(layer.kernel), layer.bias])
    np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-5)
    assert np.abs(wanted).min() > 1e-4


def test_the_surrogate_is_clipped_and_held_near_the_start():
    """Against plain numpy, away from the policy that drew; a step of weight 0 counts nothing."""
    rows, clip, kl = 40, 0.2, 0.3
    log_odds, open_, commit = RNG.normal(size=(rows, 2)) * 2, RNG.random((rows, 2)) < 0.8, RNG.random((rows, 2)) < 0.5
    advantage, weight = RNG.normal(size=rows), (RNG.random(rows) < 0.7).astype(float)
    now, drew, began = ((KERNEL + RNG.normal(size=(2, 2)) * by, BIAS) for by in (0.2, 0.2, 0.5))
    coin = coins(*drew, log_odds)
    ratio = chance(coins(*now, log_odds), commit) / chance(coin, commit)
    p, q = (chance(coins(*which, log_odds), True) for which in (now, began))
    away = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    worth = advantage[:, None]
    gain = np.minimum(ratio * worth, np.clip(ratio, 1 - clip, 1 + clip) * worth)
    wanted = ((kl * away - gain) * open_).sum(1) @ weight / weight.sum()
    steps = batch(log_odds, open_, commit, coin, advantage, weight)
    loss = jax.jit(functools.partial(surrogate, temperature=TEMPERATURE, clip=clip, kl=kl))
    found = loss(learned(*now), learned(*began), steps)
    assert float(found) == pytest.approx(wanted, rel=1e-4)
    assert (np.abs(ratio - 1) > clip).any()


def test_a_decode_is_worth_what_it_is_above_its_group():
    rewards = np.asarray([[1.0, 1.0, 0.0, 0.0], [0.5, 0.5, 0.5, 0.5], [0.9, 0.8, 0.9, 0.8]])
    found = advantages(rewards)
    np.testing.assert_allclose(found.mean(axis=1), 0.0, atol=1e-12)
    assert found.std() == pytest.approx(1.0)
    assert found[0, 0] == pytest.approx(10 * found[2, 0])  # a forward is not made to weigh like an answer
    np.testing.assert_array_equal(advantages(rewards[1:2]), 0.0)


def test_each_step_is_learned_from_as_often_as_there_are_epochs():
    rows = 23
    steps = batch(
        np.arange(2 * rows).reshape(rows, 2), *[np.ones((rows, 2), bool)] * 2, np.zeros((rows, 2)), *[np.ones(rows)] * 2
    )
    seen = list(minibatches(jax.device_get(steps), 8, 3, [0, 1]))
    assert {batch.open.shape for batch in seen} == {(8, 2)}
    counted = np.concatenate([batch.log_odds[batch.weight > 0, 0] for batch in seen])
    np.testing.assert_array_equal(np.bincount(counted.astype(int) // 2), 3)
    again = minibatches(jax.device_get(steps), 8, 3, [0, 1])
    assert all((one.log_odds == two.log_odds).all() for one, two in zip(seen, again, strict=True))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"price": -1.0}, "price: found -1.0, expected a number of 0 or more"),
        ({"price": float("inf")}, "price: found inf"),
        ({"price": 0.1, "group": 1}, "group: found 1, expected at least 2"),
        ({"price": 0.1, "temperature": 0.0}, "temperature: found 0.0, expected a number above 0"),
        ({"price": 0.1, "kl": float("nan")}, "kl: found nan"),
    ],
)
def test_a_recipe_that_makes_no_fit_is_refused(changes, words):
    with pytest.raises(InputError, match=words):
        RewardRecipe(**changes)
