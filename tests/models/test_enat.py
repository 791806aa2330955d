"""ENAT's network: whatever was revealed when, it gives what encoding token after token gives."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import InputError, Inputs, build
from jaxdiff.models import Enat
from jaxdiff.protocols import is_encoding
from tests import small
from tests.enat import MODEL, Plain, shares

LENGTH, STEPS = 12, 4
RNG = np.random.default_rng(0)
REVEALED = RNG.integers(-1, STEPS, (3, LENGTH)).astype(np.int32)
REVEALED[:, 5] = -1  # a mask at least
TOKENS = np.where(REVEALED < 0, small.MASK, RNG.integers(4, small.VOCAB, (3, LENGTH))).astype(np.int32)
ORIGIN = np.asarray([0, 2, 4], np.int32)


def test_a_token_sees_what_was_revealed_no_later_than_itself():
    model = Enat(dataclasses.replace(MODEL.config, include_qkv_bias=True))
    tree = small.params(3, model)
    tree = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape), tree)
    inputs = Inputs.whole(jnp.asarray(TOKENS), jnp.asarray(ORIGIN), revealed=jnp.asarray(REVEALED))
    features, _ = jax.jit(model.apply)(tree, inputs)
    found = np.asarray(features @ model.head(tree))
    for row, origin in enumerate(ORIGIN):
        plain = Plain(tree, model.config)
        for step in range(STEPS):
            logits = plain(np.where(REVEALED[row] <= step, TOKENS[row], small.MASK)[origin:])
        np.testing.assert_allclose(found[row, origin:], logits, atol=2e-4)
        assert not found[row, TOKENS[row] != small.MASK].any()


def test_encoding_what_is_new_gives_the_bits_of_encoding_all():
    tree, apply, encode = small.params(0, MODEL), jax.jit(MODEL.apply), jax.jit(MODEL.encode)
    at = jnp.broadcast_to(jnp.arange(LENGTH, dtype=jnp.int32)[None], TOKENS.shape)
    kv = jax.tree.map(lambda leaf: leaf + 9.0, MODEL.empty_kv(3, LENGTH + 1))  # none of it is read
    for step in range(STEPS):
        revealed = jnp.where(step >= REVEALED, REVEALED, -1)
        tokens = jnp.where(revealed < 0, small.MASK, TOKENS)
        canvas = Inputs.whole(tokens, jnp.asarray(ORIGIN), revealed=revealed)
        kv = encode(tree, dataclasses.replace(canvas, fresh=revealed == step), kv, at)
        found, same = apply(tree, dataclasses.replace(canvas, fresh=revealed < 0), kv, at)
        np.testing.assert_array_equal(found, apply(tree, canvas)[0])
        jax.tree.map(np.testing.assert_array_equal, same, kv)


def test_without_steps_all_that_is_visible_was_revealed_at_once():
    tree, apply = small.params(0, MODEL), jax.jit(MODEL.apply)
    whole = Inputs.whole(jnp.asarray(TOKENS))
    at_once = Inputs.whole(jnp.asarray(TOKENS), revealed=jnp.where(TOKENS == small.MASK, -1, 0))
    found, later = (
        apply(tree, inputs)[0] for inputs in (whole, Inputs.whole(whole.tokens, revealed=jnp.asarray(REVEALED)))
    )
    np.testing.assert_array_equal(found, apply(tree, at_once)[0])
    assert np.abs(found - later).max() > 0.1


def test_what_a_token_meets():
    assert is_encoding(MODEL)
    assert not is_encoding(small.MODEL)
    np.testing.assert_allclose([MODEL.encoder_share, 1 - MODEL.encoder_share], shares(small.params(0, MODEL)))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"decoder_layers": 4}, "decoder_layers: found 4 of n_layers 4, expected fewer"),
        ({"decoder_layers": 0}, "decoder_layers: found 0, expected a whole number from 1"),
        ({"prefix_lm": True}, "prefix_lm: found true for an ENAT"),
        ({"decoder_layers": None}, "missing decoder_layers"),
    ],
)
def test_configs_that_make_none(changes, words):
    config = dataclasses.asdict(MODEL.config) | {"family": "enat"} | changes
    with pytest.raises(InputError, match=words):
        build(config)
