"""The chunked reduction over the vocabulary against numpy on whole logits."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdiff import Sampling, Score
from jaxdiff.decode import tiles
from jaxdiff.decode.push import Push
from jaxdiff.decode.score import TILE, Draws, Vocabulary, believe, text_ends
from jaxdiff.parallel.rules import LANE
from jaxdiff.types import NEVER

pytestmark = pytest.mark.usefixtures("strict")
B, W, D = 2, 3, 8
compiled = jax.jit(believe, static_argnames=("vocabulary", "mesh"))
ends_of = jax.jit(text_ends, static_argnames=("vocabulary", "ends", "mesh"))


def case(vocabulary, seed=0, scale=2.0):
    first, second = jax.random.split(jax.random.key(seed))
    return jax.random.normal(first, (B, W, D)), scale * jax.random.normal(second, (D, vocabulary))


def draws(rows=B, width=W, seed=0, positions=None):
    positions = jnp.arange(width) if positions is None else positions
    positions = jnp.broadcast_to(positions, (rows, width))
    return Draws(jax.random.split(jax.random.key(seed), rows), jnp.zeros(rows, jnp.int32), jnp.int32(0), positions)


def run(features, head, *, forbidden=(), deferred=(), tempered=False, given=None, named=None, push=None, **sampling):
    vocabulary = Vocabulary(head.shape[1], forbidden, deferred, tempered)
    given = draws(*features.shape[:2]) if given is None else given
    return compiled(features, head, vocabulary, Sampling(**sampling), given, named=named, push=push)


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
    odds = p / p.max(-1, keepdims=True)  # of the others, to the one that is highest
    others = np.sort(odds, -1)[..., :-1]
    mass, moment = others.sum(-1), (others * np.log(others + 1e-300)).sum(-1)
    np.testing.assert_allclose(found.entropy, np.log1p(mass) - moment / (1 + mass), rtol=2e-3, atol=1e-37)
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


@pytest.mark.parametrize("vocabulary", [5, LANE + 3])
def test_samples_follow_the_tempered_distribution(vocabulary, monkeypatch):
    """In one tile, and in two, which are short: drawing whole ones for thousands of rows takes ten seconds."""
    monkeypatch.setattr(tiles, "TILE", LANE)
    rows = 4000
    logits = jnp.zeros((vocabulary,)).at[jnp.array([0, 1, 2, vocabulary - 1])].set(jnp.array([9.0, 8.5, 8.0, 9.3]))
    found = run(jnp.ones((rows, 1, 1)), logits[None], forbidden=(1,), temperature=0.5)
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
    wide, moved = (
        run(same, head, temperature=3.0, given=draws(seed=3, positions=at)) for at in (None, jnp.arange(W)[::-1])
    )
    np.testing.assert_array_equal(wide.token, moved.token[:, ::-1])


def published_cut(logits, top_p, top_k):
    """Dream's top_p_logits and top_k_logits on a row of logits: which tokens stay."""
    stays = np.ones(len(logits), bool)
    order = np.argsort(-logits, kind="stable")
    p = np.exp(logits - logits.max())
    cumulative = np.cumsum((p / p.sum())[order])
    stays[order[1:][cumulative[:-1] > top_p]] = False
    kth = np.sort(np.where(stays, logits, -np.inf))[::-1][min(top_k, len(logits)) - 1]
    return stays & (logits >= kth)


@pytest.mark.parametrize("tempered", [False, True])
def test_top_p_and_top_k_leave_what_the_published_sampler_leaves(tempered):
    """Over several tiles, each row its own numbers; and none at all is p = 1, k = V."""
    vocabulary = 2 * TILE + 77
    features, head = case(vocabulary, scale=3.0)
    heat = np.array([0.0, 0.7], np.float32)
    cut = functools.partial(run, features, head, forbidden=(5,), tempered=tempered, temperature=jnp.asarray(heat))
    logits = np.asarray(features @ head, np.float64)
    logits[..., 5] = -np.inf
    plain = cut(top_p=jnp.ones(B), top_k=jnp.full(B, vocabulary))
    apart = [jax.tree.leaves(dataclasses.replace(each, log_prob=each.prob)) for each in (plain, cut())]
    for left, right in zip(*apart, strict=True):
        np.testing.assert_array_equal(left, right)
    np.testing.assert_allclose(plain.log_prob, cut().log_prob, atol=1e-5)  # with cuts it is a difference of two sums
    for top_p, top_k in ((0.9, vocabulary), (0.5, vocabulary), (1.0, 7), (0.95, 40), (0.0, 3)):
        found = cut(top_p=jnp.full(B, top_p), top_k=jnp.full(B, top_k))
        for row in range(B):
            tempering = heat[row] or 1.0
            for at in range(W):
                stays = published_cut(logits[row, at] / tempering, top_p, top_k)
                left = np.where(stays, logits[row, at], -np.inf) / (tempering if tempered else 1.0)
                p = np.exp(left - left.max()) / np.exp(left - left.max()).sum()
                token = int(found.token[row, at])
                assert stays[token]
                assert heat[row] or token == logits[row, at].argmax()
                np.testing.assert_allclose(found.prob[row, at], p[token], rtol=1e-4)
                np.testing.assert_allclose(found.entropy[row, at], -(p * np.log(p + 1e-300)).sum(), atol=1e-4)


PUSH = Push(jnp.full((B, W), 7), jnp.full((B, W), 99.0))


@pytest.mark.parametrize(
    "options", [{}, {"temperature": 0.7}, {"temperature": 0.7, "top_p": 0.6, "top_k": 9}, {"push": PUSH}]
)
@pytest.mark.parametrize("tempered", [False, True])
def test_log_probs_are_those_before_push_temperature_and_cuts(tempered, options):
    """Of the candidate, and of tokens by name: wherever they stand among the tiles, and if they were cut."""
    vocabulary = TILE + 77
    features, head = case(vocabulary)
    named = jnp.asarray(np.random.default_rng(0).integers(0, vocabulary, (B, W, 2)), jnp.int32).at[0, 0, 0].set(5)
    found = run(features, head, forbidden=(5,), tempered=tempered, named=named, **options)
    logits = np.asarray(features @ head, np.float64)
    logits[..., 5] = -np.inf
    expected = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    assert "push" not in options or np.all(np.asarray(found.token) == 7)
    candidates = np.take_along_axis(expected, np.asarray(found.token)[..., None], -1)[..., 0]
    np.testing.assert_allclose(found.log_prob, candidates, atol=1e-5)
    wanted = np.take_along_axis(expected, np.asarray(named), -1)
    assert found.named[0, 0, 0] <= NEVER
    assert np.isfinite(np.asarray(found.named)).all()
    np.testing.assert_allclose(np.asarray(found.named).ravel()[1:], wanted.ravel()[1:], atol=1e-4)


def test_samples_within_top_p_follow_the_tempered_distribution():
    rows, heat = 4000, 0.5
    logits = np.array([3.0, 2.5, 2.0, 0.5, 0.0, -1.0])
    head = jnp.asarray(logits, jnp.float32)[None]
    found = run(jnp.ones((rows, 1, 1)), head, tempered=True, temperature=heat, top_p=0.9)
    stays = published_cut(logits / heat, 0.9, 6)
    assert 1 < stays.sum() < 6
    expected = np.where(stays, np.exp(logits / heat), 0.0)
    expected /= expected.sum()
    counts = np.bincount(np.asarray(found.token[:, 0]), minlength=6) / rows
    np.testing.assert_allclose(counts, expected, atol=4 * np.sqrt(0.25 / rows))
    np.testing.assert_allclose(found.prob[:, 0], expected[np.asarray(found.token[:, 0])], rtol=1e-3)


def test_entropies_near_certainty_are_ordered_without_a_tie():
    entropy = jnp.asarray([[2e-9, 1e-9, 0.5, 1e30]], jnp.float32)  # the last: an end-of-text that is put off
    sharpness = np.asarray(Score.sharpness.fget(types.SimpleNamespace(entropy=entropy)))[0]
    assert (np.argsort(-sharpness) == [1, 0, 2, 3]).all()
    assert sharpness[1] - sharpness[0] > 0.5
    assert sharpness[3] <= NEVER


# Two values of the four meet each other in one of them.
@pytest.mark.parametrize(
    ("vocabulary", "ends", "tempered", "deferred", "sampling"),
    [
        (50, (1,), False, False, {}),
        (50, (1, 40), True, True, {"temperature": 0.7}),
        (50, (1,), True, False, {"temperature": 1.0, "top_p": 0.8}),
        (50, (1, 40), False, True, {"top_k": 3}),
        (TILE + 77, (1, 40), True, True, {}),
        (TILE + 77, (1,), False, False, {"temperature": 0.7}),
        (TILE + 77, (1, 40), False, False, {"temperature": 1.0, "top_p": 0.8}),
        (TILE + 77, (1,), True, True, {"top_k": 3}),
    ],
)
@given(seed=st.integers(0, 5))
@settings(max_examples=3)
def test_ends_of_text_are_those_of_the_whole_belief(vocabulary, seed, ends, tempered, deferred, sampling):
    features, head = case(vocabulary, seed)
    head = head.at[:, list(ends)].add(features.mean((0, 1))[:, None] * 3.0)
    asked = Vocabulary(vocabulary, (3,), ends if deferred else (), tempered)
    belief = compiled(features, head, asked, Sampling(**sampling), draws())
    foreseen, log_odds = ends_of(features, head, asked, Sampling(**sampling), draws(), ends)
    wanted = np.isin(belief.token, ends)
    np.testing.assert_array_equal(foreseen, wanted)
    np.testing.assert_allclose(log_odds, np.where(wanted, belief.log_odds, NEVER), rtol=1e-4, atol=1e-4)


def test_on_equal_logits_the_lower_id_is_the_candidate():
    features, head = case(50)
    for ends, wanted in (((0,), True), ((5,), False), ((0, 5), True)):
        foreseen, _ = ends_of(features, 0.0 * head, Vocabulary(50, (3,)), Sampling(), draws(), ends)
        assert (np.asarray(foreseen) == wanted).all()
