"""The dense LLaDA forward against a plain numpy transcription of the published equations."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import InputError, Inputs, build
from jaxdiff.models import Llada, LladaConfig
from tests import small


def silu(x):
    return x / (1 + np.exp(-x))


def rms(x, weight, eps):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight


def rope(x, position, theta):
    """X [T, heads, E], rotate_half: pairs (i, i + E/2)."""
    half = x.shape[-1] // 2
    angle = position[:, None, None] * theta ** (-np.arange(half) * 2 / x.shape[-1])
    a, b = x[..., :half], x[..., half:]
    return np.concatenate([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)], -1)


def forward(config, params, tokens, sees=True):
    """One row, float64: logits [T, V]; `sees` [T, T]: which tokens each may attend to."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    x, position = params["wte"][tokens], np.arange(len(tokens), dtype=np.float64)
    size, groups = config.head_dim, config.n_heads // config.n_kv_heads

    def dense(layer, name, x):
        return x @ layer[name]["kernel"] + layer[name].get("bias", 0.0)

    for i in range(config.n_layers):
        layer = jax.tree.map(lambda x, i=i: x[i], params["layers"])
        n = rms(x, layer["attn_norm"]["weight"], config.rms_norm_eps)
        q, k, v = (dense(layer, name, n).reshape(len(tokens), -1, size) for name in ("q_proj", "k_proj", "v_proj"))
        q, k = rope(q, position, config.rope_theta), rope(k, position, config.rope_theta)
        heads = []
        for h in range(config.n_heads):
            scores = np.where(sees, q[:, h] @ k[:, h // groups].T / np.sqrt(size), -np.inf)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            heads.append(weights / weights.sum(-1, keepdims=True) @ v[:, h // groups])
        x = x + dense(layer, "attn_out", np.concatenate(heads, -1))
        m = rms(x, layer["ff_norm"]["weight"], config.rms_norm_eps)
        x = x + dense(layer, "ff_out", silu(dense(layer, "ff_proj", m)) * dense(layer, "up_proj", m))
    return rms(x, params["ln_f"]["weight"], config.rms_norm_eps) @ params["head"]


def logits(model, params, tokens, origin=0):
    tokens = jnp.asarray(tokens)[None]
    features, _ = model.apply(params, Inputs.whole(tokens, jnp.asarray([origin])))
    return np.asarray(features.astype(jnp.float32) @ model.head(params).astype(jnp.float32))[0]


VARIANTS = {
    "llada-8b-like": {},
    "full-heads": {"n_kv_heads": 4},
    "biases": {"include_qkv_bias": True},
    "other-theta": {"rope_theta": 10000.0, "rms_norm_eps": 1e-6},
}
TOKENS = np.array([5, 9, 3, 3, 17, 60, 1, 44, 3])


def model_of(**changes):
    return Llada(dataclasses.replace(small.CONFIG, **changes))


@pytest.mark.usefixtures("strict")
@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_logits_equal_numpy(changes):
    model = model_of(**changes)
    params, noise = jax.jit(model.init)(jax.random.key(1)), np.random.default_rng(2)
    params = jax.tree.map(lambda x: x + np.float32(0.1 * noise.standard_normal(x.shape)), params)  # norms, biases too
    expected = forward(model.config, params, TOKENS)
    found = logits(model, params, TOKENS)
    assert np.abs(expected).max() > 0.5
    np.testing.assert_allclose(found, expected, atol=5e-5)


def test_bfloat16_is_close():
    params = jax.jit(small.MODEL.init)(jax.random.key(1))
    expected = forward(small.CONFIG, params, TOKENS)
    half = model_of(dtype="bfloat16")
    found = logits(half, jax.tree.map(lambda x: x.astype(jnp.bfloat16), params), TOKENS)
    assert np.abs(found - expected).max() / np.abs(expected).max() < 2e-2


def test_padding_is_never_attended_to_and_positions_count_from_the_first_token():
    params = small.params()
    alone = logits(small.MODEL, params, TOKENS)
    for fill in (0, 3, 50):
        padded = logits(small.MODEL, params, np.concatenate([[fill] * 5, TOKENS]), origin=5)
        np.testing.assert_allclose(padded[5:], alone, atol=1e-4)


def test_compile_time_does_not_grow_with_depth():
    """Layers are scanned: the program of 12 layers has as many equations as that of 2."""

    def equations(depth):
        model = model_of(n_layers=depth)
        tree = jax.eval_shape(model.init, jax.random.key(0))
        tokens = jnp.zeros((1, 4), jnp.int32)
        return str(jax.make_jaxpr(model.apply)(tree, Inputs.whole(tokens))).count("=")

    assert equations(2) == equations(12)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"family": "mamba"}, "expected family llada"),
        ({"block_type": "sequential"}, "block_type: found 'sequential'"),
        ({"attention_layer_norm": True}, "attention_layer_norm: found True"),
        ({"scale_logits": True}, "scale_logits: found True"),
        ({"n_heads": 5}, "d_model: found 32 with 5 heads"),
        ({"n_kv_heads": 3}, "n_kv_heads: found 3"),
        ({"mask_token_id": 61}, "mask_token_id: found 61"),
        ({"vocab_size": None}, "missing vocab_size"),
    ],
)
def test_a_config_that_does_not_fit_is_one_clear_line(change, words):
    config = dataclasses.asdict(small.CONFIG) | {"family": "llada"} | change
    with pytest.raises(InputError, match=words) as caught:
        build(config)
    assert "\n" not in str(caught.value)


def test_config_round_trip():
    config = LladaConfig.from_dict(dataclasses.asdict(small.CONFIG))
    assert config == small.CONFIG
