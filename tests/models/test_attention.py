"""Attention of many queries goes piece by piece, and gives what it gives at once."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.models import layers


def largest(program):
    """Elements of the largest float32 array in a compiled program."""
    found = re.findall(r"f32\[([\d,]+)\]", program.as_text())
    return max(np.prod([int(n) for n in dims.split(",")]) for dims in found)


@pytest.mark.parametrize("alike", [True, False], ids=["all queries see alike", "each its own"])
def test_attention_in_pieces_is_attention_at_once(monkeypatch, alike):
    keys = jax.random.split(jax.random.key(0), 4)
    q = jax.random.normal(keys[0], (2, 11, 4, 8))
    k, v = (jax.random.normal(key, (2, 2, 13, 8)) for key in keys[1:3])
    seen = jax.random.bernoulli(keys[3], 0.7, (2, 1 if alike else 11, 13)).at[:, :, 0].set(True)
    whole = layers.attend(q, k, v, seen)
    monkeypatch.setattr(layers, "QUERIES", 4)
    program = jax.jit(layers.attend).lower(q, k, v, seen).compile()
    np.testing.assert_allclose(program(q, k, v, seen), whole, atol=1e-6)
    assert largest(program) < 2 * 4 * 11 * 13  # no logits of all the queries
    assert jnp.isfinite(whole).all()


def test_rows_that_go_one_after_the_other_are_rows_at_once(monkeypatch):
    keys = jax.random.split(jax.random.key(1), 4)
    q = jax.random.normal(keys[0], (5, 24, 4, 8))
    k, v = (jax.random.normal(key, (5, 2, 24, 8)) for key in keys[1:3])
    seen = jax.random.bernoulli(keys[3], 0.7, (5, 1, 24)).at[:, :, 0].set(True)
    monkeypatch.setattr(layers, "ROOM", {})
    whole = layers.attend(q, k, v, seen)
    for room in (1, 2 * 4 * 24 * 24):  # a head at a time; two rows, and the fifth alone
        monkeypatch.setattr(layers, "ROOM", {jax.default_backend(): room})
        program = jax.jit(lambda *x: layers.attend(*x)).lower(q, k, v, seen).compile()
        np.testing.assert_allclose(program(q, k, v, seen), whole, atol=1e-6)
        assert largest(program) < 5 * 4 * 24 * 24  # no logits of all the rows
