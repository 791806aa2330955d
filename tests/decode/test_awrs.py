"""AWRS: draws and weights against what can be enumerated, from whole log-probabilities and from the head's tiles."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import InputError, Sampling, make_mesh
from jaxdiff.constraints import awrs
from jaxdiff.constraints.awrs import ESTIMATORS, LogProbs
from jaxdiff.decode import tiles
from jaxdiff.decode.tiles import Asked, Draws
from jaxdiff.decode.vocabulary import Vocabulary
from jaxdiff.decode.weighted import Tiled
from jaxdiff.parallel.mesh import WHOLE, over_data
from jaxdiff.types import NEVER
from tests import reference

pytestmark = pytest.mark.usefixtures("strict")
V, ROWS, POSITIONS = 12, 1000, 100
draw = jax.jit(lambda source, ok, estimator: awrs.draw(source, awrs.table(ok), estimator), static_argnames="estimator")


def source(p, rows, positions, seed=0, width=4):
    log_prob = jnp.log(jnp.broadcast_to(jnp.asarray(p, jnp.float32), (rows, positions, len(p))))
    keys = jax.random.split(jax.random.key(seed), rows)
    at = jnp.broadcast_to(jnp.arange(positions, dtype=jnp.int32)[None], (rows, positions))
    return LogProbs(jnp.maximum(log_prob, NEVER), keys, at, width)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_weights_are_right_on_average(estimator):
    """Over 1e5 draws: E[w] = Z, and E[w 1{v}] = p(v) for each token; the token alone is a draw among the allowed."""
    p = np.random.default_rng(0).dirichlet(np.full(V, 0.7))
    ok = np.isin(np.arange(V), [1, 4, 7, 9])
    found = draw(source(p, ROWS, POSITIONS), jnp.asarray(ok), estimator)
    token, weight = np.asarray(found.token).ravel(), np.exp(np.asarray(found.log_weight, np.float64)).ravel()

    def near(values, expected):
        assert abs(values.mean() - expected) < 3 * values.std() / np.sqrt(values.size)

    near(weight, p[ok].sum())
    for v in np.flatnonzero(ok):
        near(weight * (token == v), p[v])
        near((token == v).astype(float), p[v] / p[ok].sum())
    assert ok[token].all()
    np.testing.assert_allclose(np.exp(np.asarray(found.log_prob).ravel()), p[token], rtol=1e-5)
    assert 1 < np.asarray(found.checks).mean() < V / 2


def test_few_are_asked_about():
    """Half of the mass of 512 tokens allowed, in many distributions: under 5 % of them are asked about."""
    rng = np.random.default_rng(1)
    for concentration in (0.02, 1.0):
        p = rng.dirichlet(np.full(512, concentration))
        ok = np.zeros(512, bool)
        for v in rng.permutation(512):
            ok[v] |= p[ok].sum() < 0.5
        assert p[ok].sum() >= 0.5
        for estimator in ESTIMATORS:
            found = draw(source(p, 20, 20, width=8), jnp.asarray(ok), estimator)
            assert np.asarray(found.checks).mean() < 0.05 * 512
            assert np.asarray(found.checks).min() >= 1


def test_where_nothing_is_allowed_the_particle_dies_and_where_all_is_nothing_is_asked_twice():
    p = np.array([0.5, 0.25, 0.125, 0.125, 0.0])
    ok = jnp.stack(
        [jnp.zeros((3, 5), bool), jnp.ones((3, 5), bool), jnp.broadcast_to(jnp.arange(5)[None] == 4, (3, 5))]
    )
    for estimator in ("geometric", "recursive"):
        found = draw(source(p, 3, 3, width=2), ok, estimator)
        assert (np.asarray(found.log_weight)[[0, 2]] == -np.inf).all()
        assert (np.asarray(found.checks)[[0, 2]] == 4).all()  # what has no mass is not asked about
        assert (np.asarray(found.token) < 4).all()
        np.testing.assert_allclose(found.log_weight[1], 0.0, atol=1e-6)
        assert np.asarray(found.checks)[1].max() <= 2


def test_a_position_does_not_hang_on_its_neighbours():
    p, ok = np.random.default_rng(2).dirichlet(np.ones(V)), jnp.arange(V) % 3 == 0
    whole = source(p, 8, 6)
    part = LogProbs(whole.log_prob[2:4, 1:3], whole.keys[2:4], whole.positions[2:4, 1:3], 4)
    both = draw(whole, ok, "recursive"), draw(part, ok, "recursive")
    for name in ("token", "log_weight", "checks"):
        one, other = (np.asarray(getattr(each, name)) for each in both)
        np.testing.assert_allclose(one[2:4, 1:3], other, rtol=1e-6)


def asked(vocabulary, rows, positions, **sampling):
    first, second = jax.random.split(jax.random.key(5))
    features, head = jax.random.normal(first, (rows, positions, 8)), jax.random.normal(second, (8, vocabulary))
    at = jnp.broadcast_to(jnp.arange(positions, dtype=jnp.int32)[None], (rows, positions))
    given = Draws(jax.random.split(jax.random.key(3), rows), jnp.full(rows, 4, jnp.int32), jnp.int32(0), at)
    ids = Vocabulary(vocabulary, (7,), (), sampling.pop("tempered", False))
    return Asked.of(features, ids, Sampling(**sampling), given), head


@functools.partial(jax.jit, static_argnames=("estimator", "width"))
def drawn(asked, head, ok, estimator, width):
    return awrs.draw(Tiled.of(asked, head, width=width), awrs.table(ok), estimator)


@pytest.mark.parametrize(("tempered", "estimator"), [(False, "paper"), (True, "recursive")])
def test_the_first_allowed_of_the_vocabulary_is_drawn_whatever_the_tiles(monkeypatch, tempered, estimator):
    """Against the highest noisy logit among the allowed, with the decode's own noise; few are, so that a walk goes on
    behind its first tokens.
    """
    monkeypatch.setattr(tiles, "TILE", 128)
    rows, positions, vocabulary = 4, 5, 300
    given, head = asked(vocabulary, rows, positions, temperature=0.7, tempered=tempered)
    ok = np.zeros(vocabulary, bool)
    ok[np.random.default_rng(3).integers(0, vocabulary, 12)] = True
    ok[7] = True  # forbidden: it has no mass
    logits = np.asarray(given.features @ head, np.float64)
    logits[..., 7] = -np.inf
    log_prob = reference.log_softmax(logits / 0.7)
    steps = [jax.random.fold_in(key, 4) for key in given.draws.keys]
    noise = np.stack([reference.gumbel(step, 0, positions, vocabulary) for step in steps])
    order = np.argsort(-(log_prob + noise), axis=-1)
    found = drawn(given, head, jnp.asarray(ok), estimator, 16)
    for row in range(rows):
        for at in range(positions):
            place = int(np.argmax(ok[order[row, at]]))
            token, lost = order[row, at, place], np.exp(log_prob[row, at, order[row, at, :place]]).sum()
            assert found.token[row, at] == token
            np.testing.assert_allclose(found.log_prob[row, at], log_prob[row, at, token], atol=1e-4)
            if estimator == "recursive":
                also = ok[order[row, at, place + 1]]
                weight = np.log(1 - lost) if also else log_prob[row, at, token]
                np.testing.assert_allclose(found.log_weight[row, at], weight, rtol=1e-3)
                assert found.checks[row, at] == place + 2
            else:  # at most as many refusals more as there are tokens left
                assert np.log(1 - lost) - np.log(vocabulary) <= found.log_weight[row, at] <= np.log(1 - lost) + 1e-4
                assert found.checks[row, at] > place


def test_the_tiles_are_those_of_a_mesh():
    """The vocabulary over two devices: the same draws."""
    mesh = make_mesh(1, 2)
    given, head = asked(512, 2, 3, temperature=1.0)
    ok = jnp.arange(512) % 17 == 3
    alone = drawn(given, head, ok, "paper", 8)

    def program(given, head, ok):
        return awrs.draw(Tiled.of(given, head, mesh=mesh), awrs.table(ok), "paper")

    both = jax.jit(over_data(program, mesh, (WHOLE, WHOLE, WHOLE), WHOLE))(given, head, ok)
    for field in dataclasses.fields(alone):
        np.testing.assert_allclose(getattr(alone, field.name), getattr(both, field.name), rtol=1e-5)


def test_another_estimator_is_refused():
    with pytest.raises(InputError, match="estimator: found 'best', expected one of paper, geometric, recursive"):
        awrs.draw(source(np.full(4, 0.25), 1, 1), awrs.table(jnp.ones(4, bool)), "best")
