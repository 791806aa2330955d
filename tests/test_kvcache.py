"""The KV cache: every way of writing it against numpy, stored or for one pass alone; and another width."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdiff import kvcache
from jaxdiff.kvcache import LayerAccess

LAYERS, ROWS, HEADS, COLUMNS, SIZE = 3, 4, 2, 7, 5
WAYS = {  # of writing: the columns of the fed tokens, None for the first ones
    "whole": lambda draw, width: None,
    "window": lambda draw, width: draw.integers(0, COLUMNS - width + 1, ROWS),
    "indices, some rows": lambda draw, width: np.stack([draw.permutation(COLUMNS)[:width] for _ in range(ROWS)]),
    "whole, some rows": lambda draw, width: None,
    "window, some rows": lambda draw, width: draw.integers(0, COLUMNS - width + 1, ROWS),
    "indices": lambda draw, width: np.stack([draw.permutation(COLUMNS)[:width] for _ in range(ROWS)]),
}


@functools.partial(jax.jit, static_argnames=("columns",))
def update(keys, values, pair, layer, fresh, at, rows, *, columns):
    """Of a pass that stores, and of one that does not."""
    return [
        LayerAccess(pair, layer, fresh, at, rows, columns=columns, store=store).update(keys, values)
        for store in (True, False)
    ]


@pytest.mark.usefixtures("strict")
@pytest.mark.parametrize("way", WAYS)
@given(seed=st.integers(0, 2**20), layer=st.integers(0, LAYERS - 1), width=st.integers(1, 5))
@settings(max_examples=20, deadline=None)
def test_every_way_of_writing_equals_numpy(way, seed, layer, width):
    """Seen is what is fresh, and the cache elsewhere; a pass that stores nothing hands the cache back as it was."""
    draw = np.random.default_rng(seed)
    some = way.endswith("some rows")
    rows = draw.permutation(2 * ROWS)[:ROWS] if some else np.arange(ROWS)  # of the cache, which may have more
    pair = [draw.normal(size=(LAYERS, (1 + some) * ROWS, HEADS, COLUMNS, SIZE)).astype(np.float32) for _ in range(2)]
    new = [draw.normal(size=(ROWS, width, HEADS, SIZE)).astype(np.float32) for _ in range(2)]
    fresh, at = draw.random((ROWS, width)) < 0.6, WAYS[way](draw, width)
    fed = (
        at
        if way.startswith("indices")
        else np.zeros((ROWS, 1), int) + np.arange(width) + (0 if at is None else at[:, None])
    )
    columns = width if at is None else COLUMNS - width % 2  # a canvas may be shorter than the cache
    expected = [np.array(leaf) for leaf in pair]
    for row, token in itertools.product(range(ROWS), range(width)):
        if fresh[row, token]:
            for leaf, own in zip(expected, new, strict=True):
                leaf[layer, rows[row], :, fed[row, token]] = own[row, token]
    given = jax.tree.map(jnp.asarray, (*new, tuple(pair), np.int32(layer), fresh))
    at = None if at is None else jnp.asarray(at, jnp.int32)
    stored, passing = update(*given, at, jnp.asarray(rows, jnp.int32) if some else None, columns=columns)
    for (*seen, after), wanted in ((stored, expected), (passing, pair)):
        for own, leaf, all_, kept in zip(seen, after, expected, wanted, strict=True):
            np.testing.assert_array_equal(own, all_[layer, rows, :, :columns])
            np.testing.assert_array_equal(leaf, kept)


@pytest.mark.usefixtures("strict")
def test_a_cache_is_repadded_on_the_left():
    kv = {"layers": kvcache.empty(LAYERS, ROWS, HEADS, COLUMNS, SIZE, "float32"), "dense": None}
    assert {leaf.shape for leaf in kv["layers"]} == {(LAYERS, ROWS, HEADS, COLUMNS, SIZE)}
    kv = jax.tree.map(lambda leaf: leaf + jnp.arange(1.0, COLUMNS + 1)[None, None, None, :, None], kv)
    for by in (3, 0, -2):
        for leaf in jax.tree.leaves(kvcache.repad(kv, by)):
            assert leaf[0, 0, 0, :, 0].tolist() == [0.0] * max(by, 0) + [float(i) for i in range(1 + max(-by, 0), 8)]
            assert leaf.shape == (LAYERS, ROWS, HEADS, COLUMNS + by, SIZE)
