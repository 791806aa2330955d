"""Learned filters: what they see, what they refuse, the official weights' layout."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import InputError
from jaxdiff.decode import loop
from jaxdiff.policies import Fixed, Learned, Threshold, any_of
from jaxdiff.policies.filters import (
    BlockFilter,
    ConfidenceFilter,
    Evidence,
    Linear,
    LocalFilter,
    block_from_linears,
    init_layers,
    local_inputs,
    local_width,
)
from tests import small

pytestmark = pytest.mark.usefixtures("strict")


def run(policy, **options):
    return small.decode(policy=policy, **options)


def evidence(rows=3, window=8, seed=0):
    rng = np.random.default_rng(seed)
    return Evidence(
        jnp.asarray(rng.normal(2, 3, (rows, window)), jnp.float32),
        jnp.asarray(rng.uniform(0, 0.3, (rows, window)), jnp.float32),
        jnp.asarray(rng.uniform(0, 2, (rows, window)), jnp.float32),
        jnp.asarray(rng.random((rows, window)) < 0.6),
        jnp.asarray(rng.integers(0, 4, rows), jnp.int32),
        jnp.asarray(rng.normal(0, 1, (rows, window, 6)), jnp.float32),
    )


@pytest.mark.parametrize("count", [1, 2, 4])
def test_the_official_layout_is_read(count):
    rng = np.random.default_rng(0)
    state = {}
    for i in range(count):
        state[f"linear{i + 1}.weight"] = rng.normal(size=(8, 8)).astype(np.float32)
        state[f"linear{i + 1}.bias"] = rng.normal(size=8).astype(np.float32)
    seen = evidence()
    x = 1 / (1 + np.exp(-np.asarray(seen.log_odds, np.float64)))
    for i in range(count):
        x = x @ state[f"linear{i + 1}.weight"].T + state[f"linear{i + 1}.bias"]
        x = np.maximum(x, 0) if i + 1 < count else x
    np.testing.assert_allclose(block_from_linears(state)(seen), x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({}, "filter: found nothing, expected linear1.weight"),
        ({"linear1.weight": np.eye(8), "bias": np.zeros(8)}, "found bias, linear1.weight, expected"),
        ({"linear1.weight": np.zeros((8, 4)), "linear1.bias": np.zeros(8)}, r"linear1.weight: found shape \(8, 4\)"),
    ],
)
def test_another_layout_is_refused(state, words):
    with pytest.raises(InputError, match=words):
        block_from_linears(state)


def test_the_published_size():
    layers = init_layers(jax.random.key(0), (32, 32, 32))
    assert sum(x.size for x in jax.tree.leaves(layers)) == 2112


def test_a_filter_of_another_block_length_is_refused_before_compilation():
    policy = Learned(BlockFilter(init_layers(jax.random.key(0), (32, 32))), 0.5)
    before = loop.run._cache_size()
    with pytest.raises(InputError, match="found block_length 8, but this filter judges blocks of 32"):
        run(policy)
    assert loop.run._cache_size() == before


def test_a_filter_that_repeats_the_probability_is_a_threshold():
    """The filter's logit is 1000 (p - 0.6): it accepts what the threshold 0.6 accepts."""
    layer = Linear(1000.0 * jnp.eye(small.BLOCK), jnp.full((small.BLOCK,), -600.0))
    learned, threshold = run(Learned(BlockFilter((layer,)), 0.5)), run(Threshold(0.6))
    for field in ("tokens", "commit_step", "nfe"):
        np.testing.assert_array_equal(getattr(learned, field), getattr(threshold, field))
    assert set(np.asarray(threshold.nfe)) != {small.GEN}


def test_joined_with_the_quota_each_step_takes_the_most_confident_too():
    nothing = Linear(jnp.zeros((small.BLOCK, small.BLOCK)), jnp.full((small.BLOCK,), -9.0))
    joined = run(any_of(Learned(BlockFilter((nothing,)), 0.5), Fixed()))
    np.testing.assert_array_equal(joined.commit_step, run(Fixed()).commit_step)


def test_local_inputs_against_a_plain_loop():
    seen, reach = evidence(), 2
    found = np.asarray(local_inputs(seen, reach, 0))
    rows, window = seen.masked.shape
    assert found.shape == (rows, window, local_width(reach, 0))
    odds, runner, entropy = (np.asarray(x, np.float64) for x in (seen.log_odds, seen.runner_up, seen.entropy))
    masked, step = np.asarray(seen.masked), np.asarray(seen.block_step)
    for b in range(rows):
        for i in range(window):
            wanted = []
            for j in range(i - reach, i + reach + 1):
                if not 0 <= j < window:
                    wanted += [0.0] * 6
                    continue
                p = 1 / (1 + np.exp(-odds[b, j]))
                wanted += [odds[b, j] / 8, p, p - runner[b, j], entropy[b, j], float(masked[b, j]), 1.0]
            left = next((d for d in range(i + 1) if not masked[b, i - d]), i + 1)
            right = next((d for d in range(window - i) if not masked[b, i + d]), window - i)
            wanted += [np.log1p(left), np.log1p(right), masked[b].mean(), np.log1p(step[b])]
            np.testing.assert_allclose(found[b, i], wanted, atol=1e-5)


def test_a_local_filter_serves_any_block_length():
    policy = Learned(LocalFilter(init_layers(jax.random.key(0), (local_width(3, 0), 8, 1))), 0.5)
    for block in (4, 8, 16):
        assert (np.asarray(run(policy, block_length=block).tokens)[:, -small.GEN :] != small.MASK).all()


@pytest.mark.parametrize("judge", [LocalFilter((), 1, 6), ConfidenceFilter((), 1)], ids=["local", "confidence"])
def test_a_wider_filter_judges_the_same_until_it_is_fitted(judge):
    judge, seen = dataclasses.replace(judge, layers=init_layers(jax.random.key(0), (judge.width, 8, 1))), evidence()
    wide = judge.widened(3)
    assert (wide.reach, wide.layers[0].kernel.shape[0]) == (3, dataclasses.replace(judge, reach=3).width)
    np.testing.assert_allclose(wide(seen), judge(seen), rtol=1e-5, atol=1e-5)
    with pytest.raises(InputError, match="reach: found 0, but the filter sees 1 neighbours"):
        judge.widened(0)


def test_what_is_beyond_the_block_does_not_matter_to_a_local_filter():
    """A position's judgement hangs on its neighbours within reach, and on the block's masks."""
    policy, seen = LocalFilter(init_layers(jax.random.key(0), (local_width(1, 0), 8, 1)), reach=1), evidence()
    other = dataclasses.replace(seen, log_odds=seen.log_odds.at[:, 5:].add(3.0))
    np.testing.assert_array_equal(policy(seen)[:, :4], policy(other)[:, :4])
    assert (np.asarray(policy(seen)[:, 4:]) != np.asarray(policy(other)[:, 4:])).all()
