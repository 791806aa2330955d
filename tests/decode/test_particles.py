"""Particles: what they stand for against what can be enumerated, each request alone, refusals."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff
from experiments.constraints import particles as experiment
from jaxdiff import InputError, make_mesh, particles
from jaxdiff import policies as p
from jaxdiff.caches import Dual
from jaxdiff.constraints import Awrs, NoRepeat
from jaxdiff.decode.api import prepare
from jaxdiff.decode.loop import begin
from jaxdiff.decode.resample import Group, resampled
from jaxdiff.stoppers import Eos
from tests import small
from tests.constraints.languages import ENDS, is_answer, regex

pytestmark = pytest.mark.usefixtures("strict")
RANDOM = p.Fixed(order="random")


def decoder(**parts):
    return small.decoder(**{"policy": RANDOM, "temperature": 1.0, "constraint": Awrs.of(NoRepeat(ENDS, 1))} | parts)


def run(order=range(4), n=4, mesh=None, weigh=None, threshold=0.9, **parts):
    """Of the small model, requests in that order."""
    ids, origin = small.batch()
    order = np.asarray(order)
    options = dict(n=n, gen_length=small.GEN, mesh=mesh, weigh=weigh, threshold=threshold)
    keys = small.keys(4)[jnp.asarray(order)]
    return particles(
        small.MODEL, small.params(), ids[order], decoder(**parts), origin=origin[order], key=keys, **options
    )


PATTERN = "(ab|c|aca)*(b|é)?"
CACHED = dict(policy=p.Entropy(1.0), cache=Dual(), stop=Eos(), cfg_scale=0.5, constraint=Awrs.of(regex(PATTERN)))


@pytest.mark.parametrize("parts", [{}, CACHED], ids=["no-repeat", "regex-dual-eos-guided"])
def test_a_request_has_the_same_particles_whatever_else_is_in_the_batch(parts):
    """Keys and values, ends and weights go with a particle that is drawn again."""
    found, other = run(**parts), run([2, 0, 0, 3], **parts)
    assert found.resampled.sum() > 0
    for mine, place in ((2, 0), (0, 1), (0, 2), (3, 3)):
        for particle in range(4):
            np.testing.assert_array_equal(found.tokens(mine, particle), other.tokens(place, particle))
        np.testing.assert_allclose(found.weights[mine], other.weights[place], rtol=1e-3, atol=1e-6)
        np.testing.assert_allclose(found.log_normalizer[mine], other.log_normalizer[place], rtol=1e-4)
    if parts:
        assert all(is_answer(PATTERN, tokens) for tokens in np.asarray(found.result.tokens)[:, -small.GEN :])
    assert np.isfinite(found.log_normalizer).all()
    np.testing.assert_allclose(found.weights.sum(axis=1), 1.0)
    np.testing.assert_allclose(found.ess, 1.0 / (found.weights**2).sum(axis=1))


def test_over_a_mesh_a_request_is_on_one_device():
    alone, spread = run(), run(mesh=make_mesh(2, 1))
    np.testing.assert_array_equal(alone.result.tokens, spread.result.tokens)
    np.testing.assert_allclose(alone.weights, spread.weights, rtol=1e-3, atol=1e-6)
    with pytest.raises(InputError, match="particles: found 3 requests over 2 data devices, expected a multiple"):
        run(range(3), mesh=make_mesh(2, 1))


def test_without_drawing_again_they_are_rows_of_their_own():
    """Each the decode of its request's key folded with its number, weighed as that says."""
    found = run(threshold=0.0)
    ids, origin = small.batch()
    keys = jnp.stack([jax.random.fold_in(key, j) for key in small.keys(4) for j in range(4)])
    each = np.repeat(np.arange(4), 4)
    rows = jaxdiff.decode(
        small.MODEL, small.params(), ids[each], decoder(), gen_length=small.GEN, origin=origin[each], key=keys
    )
    np.testing.assert_array_equal(found.result.tokens, rows.tokens)
    weight = np.exp(np.asarray(rows.log_weight, np.float64)).reshape(4, 4)
    np.testing.assert_allclose(found.weights, weight / weight.sum(axis=1, keepdims=True), rtol=1e-3)
    np.testing.assert_allclose(found.log_normalizer, np.log(weight.mean(axis=1)), rtol=1e-4)
    assert (found.resampled == 0).all()


def test_particles_are_drawn_again_by_weight():
    """Systematically: each as often as its share of n says, but for less than one; dead ones never. The mean weight
    stays, and requests with equal weights are left alone.
    """
    n, weights = 8, np.asarray([[0, 3, 0, 1, 0, 0, 0.5, 0], [1.0] * 8, [0.0] * 8], np.float32)
    prompts, _ = small.batch([[5]] * weights.size)
    plain = decoder(constraint=None)
    call = prepare(small.MODEL, small.params(), prompts, plain, gen_length=small.GEN, key=small.keys(24))
    state = begin(call.setup, call.rows)
    state = dataclasses.replace(
        state, log_weight=jnp.log(jnp.asarray(weights.ravel())), nfe=jnp.arange(24, dtype=jnp.int32)
    )
    after, again = jax.jit(resampled)(call.setup, state, Group(n, 0.5), jnp.int32(0))
    assert np.asarray(again).reshape(3, n).any(axis=1).tolist() == [True, False, False]
    who = np.asarray(after.nfe).reshape(3, n)
    assert (who[1:] == np.arange(8, 24).reshape(2, 8)).all()
    counts, share = np.bincount(who[0], minlength=n), weights[0] / weights[0].sum() * n
    assert (np.abs(counts - share) < 1).all()
    assert (counts[weights[0] == 0] == 0).all()
    np.testing.assert_allclose(np.exp(after.log_weight[:n]), weights[0].mean(), rtol=1e-5)
    data, before = (np.asarray(jax.random.key_data(each.rows.keys)) for each in (after, state))
    assert len(np.unique(np.concatenate([data[:n], before]), axis=0)) == n + 24
    assert (data[n:] == before[n:]).all()


def test_the_normalizer_is_right_on_average_and_the_texts_are_those_of_the_posterior():
    """The experiment, small: half of local masking's total variation, drawn again after each block of two tokens."""
    found = experiment.compare(length=6, vocabulary=8, requests=600, particles=8, block_length=2, seed=3)
    assert found["resampled"] > 0.1
    assert found["tv_particles"] < 0.5 * found["tv_masking"]
    assert abs(found["normalizer"] - found["normalizer_exact"]) < 3 * found["normalizer_error"]


def test_a_verifier_weighs_at_the_end():
    """Without a constraint too: what it says is the weight."""
    shown = []

    def weigh(request, tokens):
        shown.append(request)
        return float(tokens[0] % 2) * (1 + request)

    found = run(constraint=None, weigh=weigh)
    first = np.asarray([[found.tokens(i, j)[0] for j in range(4)] for i in range(4)])
    odd = first % 2
    assert shown == [i for i in range(4) for _ in range(4)]
    np.testing.assert_allclose(found.weights, odd / np.maximum(odd.sum(axis=1, keepdims=True), 1))
    with np.errstate(divide="ignore"):
        np.testing.assert_allclose(found.log_normalizer, np.log(odd.mean(axis=1) * np.arange(1, 5)))
    for i in np.flatnonzero(odd.any(axis=1)):
        assert odd[i, found.drawn[i]]
        assert odd[i, found.best[i]]
    dead = run(constraint=None, weigh=lambda *_: 0.0)
    assert (dead.weights == 0).all()
    assert (dead.ess == 0).all()
    assert (dead.log_normalizer == -np.inf).all()
    with pytest.raises(InputError, match="weigh: found nan for particle 0 of request 0, expected 0 or more"):
        run(constraint=None, weigh=lambda *_: float("nan"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(n=0), "particles: found 0, expected a whole number from 1 to"),
        (dict(threshold=1.5), "threshold: found 1.5, expected a number from 0 to 1"),
        (dict(temperature=0.0), "temperature: found 0 with particles"),
        (dict(constraint=regex("a*")), "particles: found a constraint that writes what fits best"),
        (dict(policy=p.Threshold(0.5)), "constraint: found one that draws by rejection with policy threshold"),
    ],
)
def test_what_weighs_nothing_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        run(**options)
