"""A tiny insertion model of random weights, and the loop that it is compared with, in numpy and one row at a time."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.models.insertion import Insertion, InsertionConfig
from jaxdiff.types import Inputs
from tests import small

MODEL = Insertion(InsertionConfig(**dataclasses.asdict(small.CONFIG)))
SPECIAL = (small.MASK, small.EOS)


@functools.cache
def params(seed=0):
    tree = dict(small.params(seed, MODEL))
    return tree | {"stop": {"weight": 0.25 * jax.random.normal(jax.random.key(seed + 7), (small.CONFIG.d_model,))}}


@functools.cache
def forward():
    def of(tree, tokens, positions):
        inputs = Inputs(tokens[None], positions[None], positions[None] >= 0, jnp.zeros(1, jnp.int32))
        features = MODEL.apply(tree, inputs)[0]
        return features[0] @ MODEL.head(tree), MODEL.whole(tree, features[:, 0])[0]

    return jax.jit(of)


def said(tree, text, room=48):
    """Of a text alone: logits [n V] of what is missing behind each token, float64; and the log-odds that nothing is."""
    tokens, positions = np.zeros(room, np.int32), np.full(room, -1, np.int32)
    tokens[: len(text)], positions[: len(text)] = text, np.arange(len(text))
    logits, whole = forward()(tree, tokens, positions)
    return np.array(logits[: len(text)], np.float64), float(whole)


@pytest.fixture(scope="session")
def model():
    return MODEL
