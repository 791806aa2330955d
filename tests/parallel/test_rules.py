"""The table of rules: which leaf lies where, and what is refused. Nothing compiles."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jaxdiff import InputError, decode, make_mesh
from jaxdiff.decode import api
from jaxdiff.models import Llada
from jaxdiff.parallel.mesh import parse_mesh, specs_of
from jaxdiff.parallel.rules import place, shardings
from jaxdiff.policies import Fixed, Learned, Oracle, Threshold, any_of, cap
from jaxdiff.policies.filters import BlockFilter, init_layers
from jaxdiff.pytree import pytree
from jaxdiff.stoppers import SafeEotp
from tests import small

WIDE = dataclasses.replace(small.CONFIG, d_model=64, n_heads=8, n_kv_heads=4)


def laid(config=WIDE, mesh=(2, 4), **extra):
    shapes = jax.eval_shape(Llada(config).init, jax.random.key(0))
    shapes["layers"] |= extra
    return shardings(config, shapes, make_mesh(*mesh))


def leaf(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def test_heads_widths_and_vocabulary_lie_over_model_and_all_else_is_whole():
    tree = laid()
    layers = tree["layers"]
    assert tree["wte"].sharding.spec == P("model", None)
    assert tree["head"].sharding.spec == P(None, "model")
    assert (tree["wte"].shape, tree["head"].shape) == ((512, 64), (64, 512))  # 61 ids, in whole lanes on each shard
    for name in ("q_proj", "k_proj", "v_proj", "ff_proj", "up_proj"):
        assert layers[name]["kernel"].sharding.spec == P(None, None, "model")
    for name in ("attn_out", "ff_out"):
        assert layers[name]["kernel"].sharding.spec == P(None, "model", None)
    for norm in (tree["ln_f"], layers["attn_norm"], layers["ff_norm"]):
        assert not any(norm["weight"].sharding.spec)


def test_experts_are_sliced_by_width_and_their_router_is_whole():
    experts = {"ff_proj": leaf(2, 3, 64, 16), "up_proj": leaf(2, 3, 64, 16), "ff_out": leaf(2, 3, 16, 64)}
    router = {"kernel": leaf(2, 64, 3), "bias": leaf(2, 3)}
    layers = laid(experts=experts, router=router, shared={"ff_proj": {"kernel": leaf(2, 64, 16)}})["layers"]
    assert layers["experts"]["ff_proj"].sharding.spec == P(None, None, None, "model")
    assert layers["experts"]["ff_out"].sharding.spec == P(None, None, "model", None)
    assert layers["shared"]["ff_proj"]["kernel"].sharding.spec == P(None, None, "model")
    assert not any((*layers["router"]["kernel"].sharding.spec, *layers["router"]["bias"].sharding.spec))


def test_key_value_heads_fewer_than_the_shards_are_whole():
    layers = laid(mesh=(1, 8), q_proj={"bias": leaf(2, 64)}, k_proj={"bias": leaf(2, 32)})["layers"]
    assert layers["q_proj"]["bias"].sharding.spec == P(None, "model")
    assert not any(layers["k_proj"]["bias"].sharding.spec)


def test_placing_pads_with_zeros_and_placing_again_changes_nothing():
    params, mesh = small.params(), make_mesh(2, 2)
    there = place(small.CONFIG, params, mesh)
    np.testing.assert_array_equal(there["wte"][: small.VOCAB], params["wte"])
    assert not np.asarray(there["wte"][small.VOCAB :]).any()
    again = place(small.CONFIG, there, mesh)
    for before, after in zip(jax.tree.leaves(there), jax.tree.leaves(again), strict=True):
        assert before.sharding == after.sharding
        left, right = (array.addressable_shards[0].data.unsafe_buffer_pointer() for array in (before, after))
        assert left == right


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: laid(mesh=(1, 3)), "found 8 attention heads for a model axis of 3, .*; try a model axis of 1"),
        (lambda: laid(dataclasses.replace(WIDE, n_heads=12, n_kv_heads=6, d_model=96)), "found 6 key/value heads"),
        (lambda: laid(dataclasses.replace(WIDE, mlp_hidden_size=50)), "found 50 entries of layers/ff_out/kernel"),
        (lambda: make_mesh(3, 3), "found 3x3 = 9 devices, expected 1 to 8"),
        (lambda: parse_mesh("8"), "found '8', expected DxM"),
        (lambda: run(Mesh(np.asarray(jax.devices()), ("x",))), r"found axes \('x',\), expected \('data', 'model'\)"),
        (lambda: run(make_mesh(1, 8)), "found 4 attention heads for a model axis of 8"),
    ],
)
def test_what_does_not_fit_is_refused_before_compilation(make, words):
    with pytest.raises(InputError, match=f"^mesh: .*{words}") as caught:
        make()
    assert "\n" not in str(caught.value)


def run(mesh):
    prompts, origin = small.batch()
    return decode(small.MODEL, small.params(), prompts, small.decoder(), gen_length=small.GEN, origin=origin, mesh=mesh)


def test_a_mesh_of_one_device_is_none():
    assert parse_mesh("1x1") is None
    assert dict(parse_mesh("2x4").shape) == {"data": 2, "model": 4}


def test_numbers_and_references_follow_the_rows_and_weights_do_not():
    """One number for all rows is whole on each device, as weights are, however many rows there are."""
    reference = np.full((4, 22), small.EOS, np.int32)
    learned = Learned(BlockFilter(init_layers(jax.random.key(0), (8, 8))), jnp.full((4,), 0.5))
    policy = any_of(Oracle(), cap(2, learned), Threshold(jnp.full((4,), 0.7)), Fixed())
    decoder = small.decoder(policy=policy, stop=SafeEotp(), temperature=jnp.zeros((4,)), cfg_scale=jnp.ones((4,)))
    prompts, origin = small.batch()
    options = dict(gen_length=small.GEN, origin=origin, reference=reference, mesh=make_mesh(4, 1))
    call = api.prepare(small.MODEL, small.params(), prompts, decoder, **options)
    specs = {jax.tree_util.keystr(path): spec for path, spec in jax.tree.leaves_with_path(specs_of(call.setup).decoder)}
    leads = {name.rsplit(".", 1)[1] for name, spec in specs.items() if spec == P("data")}
    assert leads == {"tau", "temperature", "cfg_scale"}
    assert sum(spec == P("data") for spec in specs.values()) == 4
    whole = {name.rsplit(".", 1)[1] for name, spec in specs.items() if spec == P()}
    assert whole == {"kernel", "bias", "k", "steps", "tau", "keep"}  # `tau` and `keep` are the stopper's
    assert len(whole) + 4 == len(specs)
    np.testing.assert_array_equal(call.rows.reference, reference)
    assert {leaf.shape[0] for leaf in jax.tree.leaves(call.rows)} == {4}

    @pytree
    class Own(Threshold):
        weights: Any = None

    own = Own([0.5] * 4, {"a": jnp.zeros((4, 3)), "b": jnp.zeros((4,))})
    for policy, leads in ((own, [P("data"), P(), P()]), (Threshold(0.5), [P()])):
        setup = dataclasses.replace(call.setup, decoder=small.decoder(policy=policy))
        assert jax.tree.leaves(specs_of(setup).decoder.policy) == leads
