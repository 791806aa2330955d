"""A tiny random model, confident enough for thresholds to bite, and the one batch shape that decode tests share."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import Dream, DreamConfig, Llada, LladaConfig, Sdar, SdarConfig, pad_prompts
from jaxdiff.models.config import Config

MASK, EOS, EOT, VOCAB = 3, 1, 2, 61
GEN, BLOCK = 16, 8
PROMPTS = [[5, 6, 7], [9, 8, 30, 31, 32, 33], [40], [11, 12, 13, 14]]

CONFIG = LladaConfig(
    vocab_size=VOCAB,
    d_model=32,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    mlp_hidden_size=48,
    mask_token_id=MASK,
    eos_token_id=EOS,
    eot_token_id=EOT,
    max_sequence_length=64,
    dtype="float32",
)
MODEL = Llada(CONFIG)
_SHAPE = {f.name: getattr(CONFIG, f.name) for f in dataclasses.fields(Config)}
DREAM = Dream(DreamConfig(**_SHAPE))
SDAR = Sdar(SdarConfig(**_SHAPE, attention_block=4))


@functools.cache
def params(seed=0, model=MODEL):
    """Random weights; the head is sharpened, and end-of-text made likely enough to occur."""
    tree = model.init(jax.random.key(seed))
    tree["wte"] = tree["wte"] * 3.0
    head = tree["head"] * 5.0
    tree["head"] = head.at[:, EOS].set(head[:, EOS] * 1.6)
    return tree


def batch(prompts=PROMPTS, multiple=1):
    return pad_prompts(prompts, fill=EOS, multiple=multiple)


def keys(rows, seed=0):
    return jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(jnp.arange(rows))


@functools.cache
def _forward():
    def forward(tree, tokens):
        positions = jnp.arange(tokens.shape[0])[None]
        features = MODEL.features(tree, tokens[None], positions, jnp.ones((1, tokens.shape[0]), bool))[0]
        return features, features @ MODEL.head(tree)

    return jax.jit(forward)


def features(tree, tokens):
    """One row alone, without padding: [L, D]."""
    return np.asarray(_forward()(tree, jnp.asarray(tokens, jnp.int32))[0])


def logits(tree, tokens):
    """One row alone, without padding: float64 [L, V]."""
    return np.asarray(_forward()(tree, jnp.asarray(tokens, jnp.int32))[1], np.float64)
