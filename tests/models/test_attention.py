"""Attention of many queries goes piece by piece, or through a TPU's kernel, and gives what it gives at once."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jaxdiff.models import attention, cudnn, splash
from jaxdiff.parallel.mesh import compiling_for, make_mesh, over_data


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
    whole = attention.attend(q, k, v, seen)
    monkeypatch.setattr(attention, "QUERIES", 4)
    program = jax.jit(attention.attend).lower(q, k, v, seen).compile()
    np.testing.assert_allclose(program(q, k, v, seen), whole, atol=1e-6)
    assert largest(program) < 2 * 4 * 11 * 13  # no logits of all the queries
    assert jnp.isfinite(whole).all()


def test_rows_that_go_one_after_the_other_are_rows_at_once(monkeypatch):
    keys = jax.random.split(jax.random.key(1), 4)
    q = jax.random.normal(keys[0], (5, 24, 4, 8))
    k, v = (jax.random.normal(key, (5, 2, 24, 8)) for key in keys[1:3])
    seen = jax.random.bernoulli(keys[3], 0.7, (5, 1, 24)).at[:, :, 0].set(True)
    monkeypatch.setattr(attention, "ROOM", {})
    whole = attention.attend(q, k, v, seen)
    for room in (1, 2 * 4 * 24 * 24):  # a head at a time; two rows, and the fifth alone
        monkeypatch.setattr(attention, "ROOM", {jax.default_backend(): room})
        program = jax.jit(lambda *x: attention.attend(*x)).lower(q, k, v, seen).compile()
        np.testing.assert_allclose(program(q, k, v, seen), whole, atol=1e-6)
        assert largest(program) < 5 * 4 * 24 * 24  # no logits of all the rows


def a_layers(rows, length, columns, heads, groups):
    """Queries, keys, values; and what is seen: at random, one row all and the last nothing."""
    keys = jax.random.split(jax.random.key(2), 4)
    q = jax.random.normal(keys[0], (rows, length, heads, splash.LANES))
    k, v = (jax.random.normal(key, (rows, groups, columns, splash.LANES)) for key in keys[1:3])
    seen = jax.random.bernoulli(keys[3], 0.7, (rows, columns)).at[:, 0].set(True)
    return q, k, v, seen.at[0].set(True).at[-1].set(False)


@pytest.mark.parametrize(("length", "columns", "tile"), [(300, 300, 1024), (130, 390, 128)], ids=["one tile", "tiles"])
def test_the_kernel_of_a_tpu_is_the_plain_products(monkeypatch, length, columns, tile):
    """Values and gradients, grouped queries, lengths that are no whole tiles; interpreted."""
    monkeypatch.setattr(splash, "TILE", tile)
    q, k, v, seen = a_layers(3, length, columns, 4, 2)
    live = jnp.any(seen, axis=1)[:, None, None, None]

    def score(attend, q, k, v):
        return jnp.sum(jnp.where(live, jnp.sin(attend(q, k, v)), 0.0))

    fast = functools.partial(splash.attend, seen=seen, interpret=True)
    plain = functools.partial(attention.attend, mask=seen[:, None])
    got, wanted = (jax.jit(lambda *x, f=f: (f(*x), jax.grad(score, (1, 2, 3))(f, *x)))(q, k, v) for f in (fast, plain))
    assert jnp.isfinite(got[0]).all()  # of the row that sees nothing, too
    np.testing.assert_allclose(got[0][:-1], wanted[0][:-1], atol=1e-5)
    for left, right in zip(got[1], wanted[1], strict=True):
        np.testing.assert_allclose(left, right, atol=2e-5)


def test_on_a_mesh_each_device_runs_the_kernel_on_its_heads():
    q, k, v, seen = a_layers(2, 128, 128, 4, 2)
    run = functools.partial(splash.attend, interpret=True)
    rows = PartitionSpec("data")
    spread = jax.jit(over_data(run, make_mesh(2, 2), (rows, rows, rows, rows), rows))
    assert "all-gather" not in spread.lower(q, k, v, seen).as_text()
    np.testing.assert_allclose(spread(q, k, v, seen), run(q, k, v, seen), atol=1e-6)


@pytest.mark.parametrize(
    ("length", "size", "alike", "taken"),
    [(128, 128, True, True), (127, 128, True, False), (128, 64, True, False), (128, 128, False, False)],
)
def test_the_kernel_is_taken_on_a_tpu_for_many_queries_that_see_alike(length, size, alike, taken):
    q, k = jnp.zeros((1, length, 2, size)), jnp.zeros((1, 2, 128, size))
    seen = jnp.ones((1, 1 if alike else length, 128), bool)
    traced = jax.jit(attention.attend).trace
    with compiling_for("tpu"):
        assert ("pallas_call" in str(traced(q, k, k, seen).jaxpr)) == taken
    assert "pallas_call" not in str(traced(q, k, k, seen).jaxpr)


def test_what_cudnn_is_given_on_a_gpu(monkeypatch):
    """Heads, layout and mask as its callers have them, with JAX's plain implementation in its place."""
    monkeypatch.setattr(attention, "platform", lambda: "gpu")
    keys = jax.random.split(jax.random.key(3), 4)
    q = jax.random.normal(keys[0], (2, 6, 4, 16), jnp.bfloat16)
    k, v = (jax.random.normal(key, (2, 2, 10, 16), jnp.bfloat16) for key in keys[1:3])
    for queries in (1, 6):
        seen = jax.random.bernoulli(keys[3], 0.7, (2, queries, 10)).at[:, :, 0].set(True)
        plain = attention.attend(q, k, v, seen)  # there is no GPU: its kernel fails, and plain products serve
        assert not cudnn.fits(q, k)
        with monkeypatch.context() as patch:
            patch.setattr(cudnn, "runs", lambda size, dtype: True)
            patch.setattr(cudnn, "attend", functools.partial(cudnn.attend, implementation="xla"))
            assert cudnn.fits(q, k)
            assert not cudnn.fits(q.astype(jnp.float32), k.astype(jnp.float32))
            assert not cudnn.fits(q[:, :5], k)
            fused = attention.attend(q, k, v, seen)
        assert fused.dtype == q.dtype
        np.testing.assert_allclose(*(np.asarray(x, np.float32) for x in (fused, plain)), atol=0.02)
