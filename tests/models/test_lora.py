"""LoRA beside a model's matrices: what it adds, where a gated one is off, over int8 and over a mesh; its folder."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import jaxdiff
from jaxdiff import InputError, Inputs, build, make_mesh
from jaxdiff.models import Llada
from jaxdiff.models.lora import LoraRecipe, adapt, adapters, join, merged, split, trainable
from jaxdiff.parallel.rules import shardings
from jaxdiff.policies import Threshold
from jaxdiff.weights import plain, quantised
from tests import small
from tests.models.test_families import SMALL

MASK = small.MASK
PREFIX = Llada(dataclasses.replace(small.CONFIG, prefix_lm=True))
EXPERTS = build(SMALL["sdar_moe"] | {"dtype": "float32"})
MODELS = {"prefix_lm": PREFIX, "norms of queries": small.SDAR, "experts": EXPERTS}
TOKENS = np.array([[5, 6, 7, 9, MASK, 9, MASK, MASK, 5, MASK, MASK, 8]], np.int32)
PROMPT = 4  # tokens, and the length of the first block of those that attend in blocks


@functools.cache
def program(model):
    """Features and the KV cache of a pass."""

    @jax.jit
    def run(params, tokens):
        inputs = Inputs.whole(tokens, prompt_length=jnp.full(tokens.shape[:1], PROMPT))
        return model.apply(params, inputs, model.empty_kv(*tokens.shape))

    return run


def numbers(shapes, seed):
    """Random weights of these shapes, without a program to draw them."""
    generator = np.random.default_rng(seed)

    def draw(leaf):
        return jnp.asarray(generator.normal(float(leaf.ndim < 3), 0.2, leaf.shape).astype(np.float32))

    return jax.tree.map(draw, shapes)


@functools.cache
def weights(model):
    return numbers(jax.eval_shape(model.init, jax.random.key(0)), 0)


def fresh(model, recipe, base=lambda params: params):
    """The same weights and an adapter as it begins."""
    return jax.jit(functools.partial(adapt, recipe=recipe))(base(weights(model)), jax.random.key(1))


def trained(model, recipe, base=lambda params: params):
    """The same, but far from where it began."""
    own, frozen = split(fresh(model, recipe, base))
    return join(numbers(own, 1), frozen)


def test_params_with_an_adapter_are_those_that_it_is_merged_into():
    """The merge is three lines of numpy; a fresh adapter changes nothing."""
    params = weights(EXPERTS)
    recipe = LoraRecipe(rank=3, alpha=6.0, targets=("q_proj", "attn_out", "experts/ff_proj", "experts/ff_out"))
    whole, run = trained(EXPERTS, recipe), program(EXPERTS)
    named = dict(adapters(whole))
    assert {name: leaf.factor.shape for name, leaf in named.items()} == {
        f"layers/{name}": (2,) for name in ("q_proj/kernel", "attn_out/kernel", "experts/ff_proj", "experts/ff_out")
    }
    expected = jax.tree.map(np.array, params)
    for kernels, name, leaf in (
        (expected["layers"]["q_proj"], "kernel", named["layers/q_proj/kernel"]),
        (expected["layers"]["attn_out"], "kernel", named["layers/attn_out/kernel"]),
        (expected["layers"]["experts"], "ff_proj", named["layers/experts/ff_proj"]),
        (expected["layers"]["experts"], "ff_out", named["layers/experts/ff_out"]),
    ):
        kernels[name] = kernels[name] + 2.0 * np.asarray(leaf.a) @ np.asarray(leaf.b)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-6), merged(whole), expected)
    found, base = run(whole, TOKENS)[0], run(params, TOKENS)[0]
    np.testing.assert_allclose(found, run(expected, TOKENS)[0], atol=1e-4)
    assert np.abs(found - base).max() > 0.1
    np.testing.assert_allclose(run(fresh(EXPERTS, recipe), TOKENS)[0], base, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_a_gated_adapter_leaves_what_no_mask_is_seen_from(name):
    """Keys and values are the base's to the bit: of visible tokens in the first layer, of the prompt in all."""
    model, masked = MODELS[name], TOKENS[0] == MASK
    whole, run = trained(model, LoraRecipe(rank=2, alpha=4.0, gated=True)), program(model)
    features, kv = run(whole, TOKENS)
    base_features, base_kv = run(weights(model), TOKENS)
    np.testing.assert_array_equal(features[:, :PROMPT], base_features[:, :PROMPT])
    for found, base in zip(jax.tree.leaves(kv), jax.tree.leaves(base_kv), strict=True):
        np.testing.assert_array_equal(found[:, :, :, :PROMPT], base[:, :, :, :PROMPT])
        changed = np.any(found != base, axis=(1, 2, 4))
        assert changed.shape == (2, len(masked))
        np.testing.assert_array_equal(changed[0], masked)
        assert changed[1, PROMPT:].all()  # above the first layer they see masks
    # At masks it is on as one that is on everywhere: a canvas of masks is that of the merged weights.
    blank = np.full_like(TOKENS, MASK)
    everywhere = merged(trained(model, LoraRecipe(rank=2, alpha=4.0)))
    np.testing.assert_allclose(run(whole, blank)[0], run(everywhere, blank)[0], atol=1e-4)


def test_an_adapter_is_trained_in_float32_over_a_base_in_int8():
    """Gradients are of the adapter alone, and those of the weights that int8 stands for."""
    whole = trained(small.MODEL, LoraRecipe(rank=2, targets=("q_proj", "ff_out")), quantised)
    own, frozen = split(whole)
    assert {leaf.dtype for leaf in jax.tree.leaves(own)} == {jnp.dtype("float32")}
    assert len(jax.tree.leaves(own)) == 4 == sum(jax.tree.leaves(trainable(whole)))
    assert any(leaf.dtype == jnp.int8 for leaf in jax.tree.leaves(frozen))

    @jax.jit
    def gradient(own, frozen):
        def loss(own):
            features, _ = small.MODEL.apply(join(own, frozen), Inputs.whole(jnp.asarray(TOKENS)))
            return jnp.sum(jnp.sin(features))

        return jax.grad(loss)(own)

    found, dense = gradient(own, frozen), gradient(*split(plain(whole)))
    for left, right in zip(jax.tree.leaves(found), jax.tree.leaves(dense), strict=True):
        assert float(jnp.abs(left).max()) > 0.01
        np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-3)


def test_an_adapter_lies_over_a_mesh_with_the_matrices_that_it_is_beside():
    whole = trained(EXPERTS, LoraRecipe(rank=2, gated=True), quantised)
    laid = adapters(shardings(EXPERTS.config, jax.eval_shape(lambda: whole), make_mesh(2, 2)))
    specs = {
        name: (leaf.base.qvalue.sharding.spec, leaf.a.sharding.spec, leaf.b.sharding.spec)
        for name, leaf in laid.items()
    }
    assert specs["layers/q_proj/kernel"] == (P(None, None, "model"), P(None, None, None), P(None, None, "model"))
    assert specs["layers/attn_out/kernel"] == (P(None, "model", None), P(None, "model", None), P(None, None, None))
    wide, narrow = P(None, None, None, "model"), P(None, None, "model", None)
    assert specs["layers/experts/up_proj"] == (wide, P(*[None] * 4), wide)
    assert specs["layers/experts/ff_out"] == (narrow, narrow, P(*[None] * 4))

    def run(mesh):
        decoder = jaxdiff.Decoder(policy=Threshold(0.2))
        return jaxdiff.decode(EXPERTS, whole, np.array([[5, 6], [7, 8]]), decoder, gen_length=4, mesh=mesh)

    alone, spread = run(None), run(make_mesh(2, 2))
    assert not int(alone.near_ties.sum())
    np.testing.assert_array_equal(alone.tokens, spread.tokens)
    np.testing.assert_array_equal(alone.nfe, spread.nfe)


def test_what_makes_no_adapter_is_one_clear_line():
    params, key = weights(small.MODEL), jax.random.key(0)
    names = r"expected some of attn_out, ff_out, ff_proj, k_proj, q_proj, up_proj, v_proj, all; the model has these$"
    for targets in (("o_proj",), ("q_proj", "gate_proj"), ("head",)):
        with pytest.raises(InputError, match=rf"^targets: found '{targets[-1]}', {names}"):
            adapt(params, key, LoraRecipe(targets=targets))
    with pytest.raises(InputError, match=r"^targets: found none"):
        adapt(params, key, LoraRecipe(targets=()))
    gated = fresh(small.MODEL, LoraRecipe(rank=2, gated=True))
    with pytest.raises(InputError, match=r"^params: found an adapter in them"):
        adapt(gated, key, LoraRecipe())
    for wrong in ({"rank": 0}, {"rank": 2**21}, {"alpha": 0.0}, {"alpha": float("nan")}):
        with pytest.raises(InputError, match=rf"^{next(iter(wrong))}: found "):
            LoraRecipe(**wrong)
    with pytest.raises(InputError, match=r"^adapter: is gated, on at \[MASK\] alone, and cannot be merged"):
        merged(gated)
