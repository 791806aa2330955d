"""int8 weights: how far they are off, what they weigh, and that a decode reads them as what they stand for."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import jaxdiff
from jaxdiff import InputError, Inputs, build, caches, decode, make_mesh
from jaxdiff.bench.shapes import abstract_params, random_params, shaped
from jaxdiff.convert.engine import from_tensors, to_tensors
from jaxdiff.parallel.rules import place, shardings
from jaxdiff.policies import Threshold
from jaxdiff.weights import full, plain, quantised
from tests import small
from tests.models.test_families import SMALL, params_of

MODELS = {"llada": small.MODEL} | {family: build(config | {"dtype": "float32"}) for family, config in SMALL.items()}


def size(params):
    return sum(leaf.nbytes for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize("family", MODELS)
def test_logits_are_off_by_little_and_matrices_weigh_a_quarter_of_float32(family):
    model = MODELS[family]
    params = params_of(model)
    light = quantised(params)

    @jax.jit
    def logits(params):
        tokens = jax.random.randint(jax.random.key(1), (2, 12), 4, small.VOCAB)
        return model.apply(params, Inputs.whole(tokens))[0] @ full(model.head(params), jnp.float32)

    right, found = logits(params), logits(light)
    off = np.linalg.norm(found - right, axis=-1) / np.linalg.norm(right, axis=-1)
    assert 0 < np.median(off) < 0.04  # of tokens: where a router flips, a single one is off by more
    small_leaves = {"weight", "bias", "router"}
    for path, leaf in jax.tree.leaves_with_path(light):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        parts = set(name.split("/"))
        assert leaf.dtype == (jnp.int8 if "qvalue" in parts else jnp.float32)
        assert bool(parts & small_leaves) != bool(parts & {"qvalue", "scale"}), name
    matrices = [leaf for leaf in jax.tree.leaves(light) if leaf.dtype == jnp.int8]
    assert sum(leaf.size for leaf in matrices) > 0.98 * sum(leaf.size for leaf in jax.tree.leaves(params))
    assert size(light) < 0.33 * size(params)  # a scale for 16 to 48 entries; in a model of width 4096 it is nothing


def test_each_output_channel_is_rounded_to_its_own_255_steps():
    kernel = jax.random.normal(jax.random.key(0), (2, 3, 16, 8)) * 10.0 ** jnp.arange(8)
    light = quantised({"layers": {"experts": {"ff_out": kernel}}})
    leaf = light["layers"]["experts"]["ff_out"]
    assert (leaf.shape, leaf.scale.shape, leaf.dtype) == ((2, 3, 16, 8), (2, 3, 1, 8), jnp.float32)
    top = jnp.max(jnp.abs(kernel), axis=2, keepdims=True)
    assert bool(jnp.all(jnp.abs(plain(light)["layers"]["experts"]["ff_out"] - kernel) <= 0.5001 / 127.5 * top))
    half = quantised({"head": kernel[0, 0].astype(jnp.bfloat16)})["head"]
    assert (half.qvalue.dtype, half.dtype) == (jnp.int8, jnp.bfloat16)
    assert quantised(light)["layers"]["experts"]["ff_out"] is leaf  # not again


@pytest.mark.usefixtures("strict")
def test_a_decode_gives_the_tokens_of_the_weights_that_int8_stands_for():
    light = quantised(small.params())
    prompts, origin = small.batch()

    def run(params):
        decoder = small.decoder(policy=Threshold(0.5), cache=caches.Dual())
        return decode(small.MODEL, params, prompts, decoder, gen_length=small.GEN, origin=origin)

    found, expected = run(light), run(plain(light))
    assert not int(expected.near_ties.sum()), "draw another seed: float rounding decides here"
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_array_equal(found.nfe, expected.nfe)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "tiny"
    jaxdiff.save(path, small.MODEL, small.params())
    return path


def same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for left, right in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert left.dtype == right.dtype
        assert left.sharding == right.sharding
        np.testing.assert_array_equal(left, right)


def test_a_folder_is_read_in_int8_on_one_device_and_on_several(folder, tmp_path):
    expected = quantised(jaxdiff.load(folder).params)
    same(jaxdiff.load(folder, weights="int8").params, expected)
    mesh, published = make_mesh(2, 4), tmp_path / "published"
    spread = place(small.CONFIG, expected, mesh)
    jaxdiff.convert.export(folder, published)
    for path in (folder, published):
        found = jaxdiff.load(path, weights="int8", mesh=mesh).params
        jax.tree.map(lambda x, y: np.testing.assert_array_equal(x.sharding.spec, y.sharding.spec), found, spread)
        same(plain(found["layers"]), plain(spread["layers"]))
    assert jaxdiff.load(folder, weights="int8", dtype="bfloat16").params["head"].dtype == jnp.bfloat16


def test_scales_lie_with_what_they_scale():
    light = jax.eval_shape(quantised, jax.eval_shape(MODELS["llada2"].init, jax.random.key(0)))
    laid = shardings(MODELS["llada2"].config, light, make_mesh(2, 2))
    experts, head, wte = laid["layers"]["experts"], laid["head"], laid["wte"]
    assert experts["up_proj"].qvalue.sharding.spec == experts["up_proj"].scale.sharding.spec == P(*[None] * 3, "model")
    assert experts["ff_out"].qvalue.sharding.spec == P(None, None, "model", None)
    assert not any(experts["ff_out"].scale.sharding.spec)  # the sum is over the shards: its scale is everyone's
    assert (head.scale.sharding.spec, wte.scale.sharding.spec) == (P(None, "model"), P("model", None))
    assert (head.scale.shape, wte.scale.shape) == ((1, 256), (256, 1))  # padded with the vocabulary


def test_what_is_written_is_multiplied_out(folder, tmp_path):
    light = jaxdiff.load(folder, weights="int8").params
    jaxdiff.save(tmp_path / "again", small.MODEL, light)
    again = jaxdiff.load(tmp_path / "again").params
    for left, right in zip(jax.tree.leaves(again), jax.tree.leaves(plain(light)), strict=True):
        np.testing.assert_array_equal(left, right.astype(jnp.bfloat16).astype(jnp.float32))
    config = {"family": "llada", "dtype": "float32"} | {k: v for k, v in vars(small.CONFIG).items() if k != "dtype"}
    same(from_tensors(config, to_tensors(small.MODEL, light))[1], plain(light))


def test_an_8b_model_takes_half_of_a_16_gb_chip():
    bytes_of = {name: size_of(abstract_params(shaped("llada-8b"), name)) for name in (None, "int8")}
    assert bytes_of[None] == pytest.approx(16.03e9, rel=1e-3)
    assert bytes_of["int8"] == pytest.approx(8.02e9, rel=1e-3)


def size_of(shapes):
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))


def test_random_weights_of_a_shape_are_in_int8_from_the_start():
    params, shapes = random_params(small.MODEL, "int8"), abstract_params(small.MODEL, "int8")
    assert jax.tree.map(lambda x: (x.shape, x.dtype), params) == jax.tree.map(lambda x: (x.shape, x.dtype), shapes)
    assert 0.01 < float(jnp.std(plain(params)["head"])) < 0.03


def test_what_cannot_be_had_is_one_clear_line(folder, monkeypatch):
    with pytest.raises(InputError, match=r"^weights: found 'int4', expected int8"):
        jaxdiff.load(folder, weights="int4")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for ask in (lambda: jaxdiff.load(folder, weights="int8"), lambda: quantised(small.params())):
        with pytest.raises(InputError, match=r"^weights: int8 needs qwix, .* pip install 'jaxdiff\[int8\]'$"):
            ask()
