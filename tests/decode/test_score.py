"""The chunked reduction over the vocabulary against numpy on whole logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxdiff.decode.score import TILE, beliefs

pytestmark = pytest.mark.usefixtures("strict")
B, W, D = 2, 3, 8
compiled = jax.jit(beliefs, static_argnames=("forbidden", "deferred", "vocabulary", "mesh"))


def case(vocabulary, seed=0, scale=2.0):
    first, second = jax.random.split(jax.random.key(seed))
    return jax.random.normal(first, (B, W, D)), scale * jax.random.normal(second, (D, vocabulary))


def run(features, head, *, forbidden=(), deferred=(), temperature=0.0, seed=0):
    return compiled(
        features,
        head,
        vocabulary=head.shape[1],
        mesh=None,
        forbidden=forbidden,
        deferred=deferred,
        temperature=jnp.float32(temperature),
        keys=jax.random.split(jax.random.key(seed), B),
        positions=jnp.broadcast_to(jnp.arange(W), (B, W)),
    )


@pytest.mark.parametrize("vocabulary", [2, 50, TILE, TILE + 1, 2 * TILE + 77])
@given(seed=st.integers(0, 5), scale=st.sampled_from([0.1, 2.0, 12.0]))
def test_equals_numpy_over_any_number_of_tiles(vocabulary, seed, scale):
    features, head = case(vocabulary, seed, scale)
    found = run(features, head)
    logits = np.asarray(features @ head, np.float64)
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    ordered = np.sort(p, -1)
    np.testing.assert_array_equal(found.token, logits.argmax(-1))
    np.testing.assert_allclose(found.prob, ordered[..., -1], rtol=2e-4, atol=1e-6)
    np.testing.assert_allclose(found.runner_up, ordered[..., -2], rtol=2e-4, atol=1e-6)
    np.testing.assert_allclose(found.entropy, -(p * np.log(p + 1e-300)).sum(-1), rtol=2e-3, atol=1e-5)
    rest = np.log(np.exp(np.sort(logits, -1)[..., :-1]).sum(-1))
    np.testing.assert_allclose(found.log_odds, logits.max(-1) - rest, rtol=1e-4, atol=1e-4)


def test_log_odds_tell_apart_what_float32_probabilities_do_not():
    head = jnp.eye(D)[:, :4] * 1.0
    features = jnp.zeros((B, W, D)).at[0, :, 0].set(jnp.array([20.0, 25.0, 30.0]))
    found = run(features, head)
    assert len(set(np.asarray(found.prob[0]).tolist())) == 1  # 1.0 each
    assert np.all(np.diff(np.asarray(found.log_odds[0])) > 4)


@pytest.mark.parametrize("vocabulary", [50, TILE + 10])
def test_forbidden_ids_have_no_mass(vocabulary):
    features, head = case(vocabulary)
    banned = tuple(sorted(set(np.asarray(run(features, head).token).ravel().tolist()) | {vocabulary - 1}))
    found = run(features, head, forbidden=banned)
    kept = [i for i in range(vocabulary) if i not in banned]
    alone = run(features, head[:, jnp.asarray(kept)])
    np.testing.assert_array_equal(np.asarray(kept)[np.asarray(alone.token)], found.token)
    for name in ("prob", "log_odds", "runner_up", "entropy"):
        np.testing.assert_allclose(getattr(found, name), getattr(alone, name), rtol=1e-4, atol=1e-5)


def test_deferred_ids_rank_last_with_no_mass_and_nothing_is_nan():
    features, head = case(50)
    plain = run(features, head)
    put_off = int(plain.token[0, 0])
    found = run(features, head, deferred=(put_off,))
    there = np.asarray(plain.token) == put_off
    assert (np.asarray(found.prob)[there] == 0).all()
    assert np.asarray(found.log_odds)[there].max() < np.asarray(found.log_odds)[~there].min()
    for name in ("prob", "log_odds", "runner_up", "entropy", "gap"):
        assert np.isfinite(np.asarray(getattr(found, name))).all()
        np.testing.assert_array_equal(
            np.asarray(getattr(found, name))[~there], np.asarray(getattr(plain, name))[~there]
        )


@pytest.mark.parametrize("vocabulary", [5, TILE + 3])
def test_samples_follow_the_tempered_distribution(vocabulary):
    rows = 4000
    logits = jnp.zeros((vocabulary,)).at[jnp.array([0, 1, 2, vocabulary - 1])].set(jnp.array([9.0, 8.5, 8.0, 9.3]))
    found = compiled(
        jnp.ones((rows, 1, 1)),
        logits[None],
        vocabulary=vocabulary,
        mesh=None,
        forbidden=(1,),
        deferred=(),
        temperature=jnp.float32(0.5),
        keys=jax.random.split(jax.random.key(0), rows),
        positions=jnp.zeros((rows, 1), jnp.int32),
    )
    expected = np.exp(np.asarray(logits, np.float64) / 0.5)
    expected[1] = 0.0
    expected /= expected.sum()
    counts = np.bincount(np.asarray(found.token[:, 0]), minlength=vocabulary) / rows
    for token in (0, 1, 2, vocabulary - 1):
        assert abs(counts[token] - expected[token]) < 4 * np.sqrt(0.25 / rows)
    # the probability reported is the candidate's own, untempered
    untempered = np.exp(np.asarray(logits, np.float64))
    untempered[1] = 0.0
    untempered /= untempered.sum()
    np.testing.assert_allclose(found.prob[:, 0], untempered[np.asarray(found.token[:, 0])], rtol=1e-3)


def test_noise_depends_on_the_absolute_position_not_on_the_window():
    features, head = case(50)
    same = jnp.broadcast_to(features[:, :1], features.shape)
    keys = jax.random.split(jax.random.key(3), B)
    options = dict(vocabulary=50, mesh=None, forbidden=(), deferred=(), temperature=jnp.float32(3.0), keys=keys)
    wide = compiled(same, head, positions=jnp.broadcast_to(jnp.arange(W), (B, W)), **options)
    moved = compiled(same, head, positions=jnp.broadcast_to(jnp.arange(W)[::-1], (B, W)), **options)
    np.testing.assert_array_equal(wide.token, moved.token[:, ::-1])
