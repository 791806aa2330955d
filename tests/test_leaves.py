"""The table of leaf kinds: every leaf of every family has one, and one that has none is refused by all who ask."""

import jax
import jax.numpy as jnp
import pytest
from flax.traverse_util import unflatten_dict

from jaxdiff import InputError, build, make_mesh
from jaxdiff.bench.ceilings import forward_cost
from jaxdiff.leaves import LEAVES, QUANTISED, kind_of, leaf_name
from jaxdiff.models import FAMILIES, in_dtype
from jaxdiff.parallel.rules import RULES, shardings
from jaxdiff.train import Recipe
from jaxdiff.train.data import Bucket
from jaxdiff.train.loop import make_optimizer
from jaxdiff.weights import quantised
from tests import small
from tests.models.test_families import SMALL

MODELS = {"llada": small.MODEL} | {family: build(config | {"dtype": "float32"}) for family, config in SMALL.items()}
RECIPE = Recipe(task="drills", model={}, problems={}, buckets=(Bucket("drills", 8, 1, 1.0),), steps=2000)


def shapes_of(family):
    return jax.eval_shape(MODELS[family].init, jax.random.key(0))


def named(tree):
    return {leaf_name(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_leaf_has_exactly_one_kind(family):
    shapes = shapes_of(family)
    for name, leaf in named(shapes).items():
        assert sum(f"/{name}".endswith(f"/{key}") for key in LEAVES) == 1, name
        kind, stacked = kind_of(name), int("/" in name and not name.startswith("ln_f/"))
        assert len(kind.axes) == leaf.ndim - stacked, name
        assert set(kind.axes) <= set(RULES), name
    for name in named(jax.eval_shape(quantised, shapes)):
        of, _, last = name.rpartition("/")
        assert kind_of(name) is kind_of(of if last in QUANTISED else name), name


@pytest.mark.parametrize("family", FAMILIES)
def test_int8_and_dtypes_follow_the_kinds(family):
    halves = in_dtype(shapes_of(family), "bfloat16")
    for name, leaf in named(halves).items():
        assert leaf.dtype == (jnp.float32 if "/router/" in name else jnp.bfloat16), name
    light = named(jax.eval_shape(quantised, halves))
    matrices = {name for name in named(halves) if name.endswith(("wte", "head", "kernel")) or "/experts/" in name}
    matrices -= {name for name in matrices if "/router/" in name}
    assert {name.removesuffix("/qvalue") for name in light if name.endswith("/qvalue")} == matrices
    for name in matrices:
        summed = -1 if name == "wte" else -2
        shape = list(light[f"{name}/qvalue"].shape)
        shape[summed] = 1
        assert light[f"{name}/scale"].shape == tuple(shape), name


@pytest.mark.parametrize("family", FAMILIES)
def test_muon_trains_the_kernels_of_the_layers_and_adam_all_else(family):
    shapes = shapes_of(family)
    state = named(jax.eval_shape(make_optimizer(RECIPE).init, shapes))
    muon, adam = (
        {name.split(f"/{moment}/")[1] for name in state if f"inner_states/{group}/" in name and f"/{moment}/" in name}
        for group, moment in (("muon", "mu"), ("adam", "nu"))
    )
    kernels = {name for name, leaf in named(shapes).items() if name.startswith("layers/") and leaf.ndim == 3}
    assert muon == kernels
    assert adam == set(named(shapes)) - kernels


def test_flops_count_of_experts_those_that_a_token_is_sent_to():
    model = MODELS["llada2"]
    shapes, c = shapes_of("llada2"), model.config
    weights = {name: leaf.size for name, leaf in named(shapes).items() if name not in ("wte", "head")}
    experts = sum(size for name, size in weights.items() if "/experts/" in name)
    met = sum(weights.values()) - experts * (1 - c.num_experts_per_tok / c.num_experts)
    assert forward_cost(model, shapes, 1, 1, 0)[0] == pytest.approx(2 * met)


@pytest.mark.parametrize(
    "ask",
    [
        lambda params: shardings(small.CONFIG, params, make_mesh(2, 2)),
        quantised,
        lambda params: in_dtype(params, "bfloat16"),
        make_optimizer(RECIPE).init,
        lambda params: forward_cost(small.MODEL, params, 1, 1, 1),
    ],
    ids=["sharding", "int8", "dtype", "optimizer", "flops"],
)
@pytest.mark.parametrize("name", ["gate/kernel", "gate", "kernel"])
def test_a_leaf_without_a_kind_is_refused_by_all_who_ask(ask, name):
    params = unflatten_dict({f"layers/{name}": jnp.zeros((2, 32, 4))}, sep="/")
    words = rf"^params: found no kind for the leaf layers/{name}; add it to LEAVES in jaxdiff/leaves\.py$"
    with pytest.raises(InputError, match=words):
        ask(params)
