"""Drafters of random weights for the tiny models, as fills; and what they compute, in plain numpy."""

import functools

import jax
import numpy as np

from jaxdiff.fills import Adjust, Head
from jaxdiff.models.drafter import Adjuster, SamplerHead, one_layer_of
from tests import small
from tests.cached import norm, rotate

KINDS = {"adjust": (Adjuster, Adjust), "head": (SamplerHead, Head)}


@functools.cache
def drafter(kind, model=small.MODEL, seed=7):
    """(definition, params); the last norm lets enough through for candidates to change."""
    definition = KINDS[kind][0](one_layer_of(model.config))
    params = jax.jit(definition.init)(jax.random.key(seed))
    return definition, params | {"norm": {"weight": params["norm"]["weight"] + 0.7}}


def fill(kind, model=small.MODEL, **numbers):
    return KINDS[kind][1](*drafter(kind, model), **numbers)


def _silu(x):
    return x / (1.0 + np.exp(-x))


def _plain(params):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)


def _both(p, c, hidden, embedded):
    parts = ((embedded, p["token_norm"]), (hidden, p["hidden_norm"]))
    return np.concatenate([norm(x, own["weight"], c.rms_norm_eps) for x, own in parts], -1)


def adjusted(params, c, hidden, embedded, positions):
    """One pass of `Adjuster` over one row's block: [W D]."""
    p = _plain(params)
    x = _both(p, c, hidden, embedded) @ p["fuse"]["kernel"]
    layer = p["layer"]
    normed = norm(x, layer["attn_norm"]["weight"], c.rms_norm_eps)

    def heads(name, count):
        return (normed @ layer[name]["kernel"]).reshape(len(x), count, c.head_dim)

    q = rotate(heads("q_proj", c.n_heads), positions, c.rope_theta)
    k, v = rotate(heads("k_proj", c.n_kv_heads), positions, c.rope_theta), heads("v_proj", c.n_kv_heads)
    k, v = (np.repeat(each, c.n_heads // c.n_kv_heads, axis=1) for each in (k, v))
    scores = np.einsum("qhe,khe->hqk", q, k) / np.sqrt(c.head_dim)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    x = x + np.einsum("hqk,khe->qhe", weights, v).reshape(len(x), -1) @ layer["attn_out"]["kernel"]
    normed = norm(x, layer["ff_norm"]["weight"], c.rms_norm_eps)
    wide = _silu(normed @ layer["ff_proj"]["kernel"]) * (normed @ layer["up_proj"]["kernel"])
    return hidden + norm(x + wide @ layer["ff_out"]["kernel"], p["norm"]["weight"], c.rms_norm_eps)


def corrected(params, c, hidden, left):
    """`SamplerHead` at some positions of one row, given the embedding of the token left of each: [C D]."""
    p = _plain(params)
    x = _both(p, c, hidden, left)
    for name, own in (("first", "first_norm"), ("second", "norm")):
        x = norm(_silu(x @ p[name]["kernel"]), p[own]["weight"], c.rms_norm_eps)
    return hidden + x


def weights_of(kind, model=small.MODEL):
    return sum(leaf.size for leaf in jax.tree.leaves(drafter(kind, model)[1]))
