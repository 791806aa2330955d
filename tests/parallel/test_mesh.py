"""A decode over a mesh of 8 simulated devices: what it gives, and what the devices tell each other."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.collectives import compiled_text
from jaxdiff import Decoder, Sampling, decode, make_mesh
from jaxdiff.bench.hlo import Array, Collective, Hlo, collectives
from jaxdiff.caches import Dual
from jaxdiff.decode.layout import Layout, Setup
from jaxdiff.decode.score import TILE, Draws, Vocabulary, believe
from jaxdiff.fills import Recap
from jaxdiff.models import Llada, Llada2, Llada2Config, LladaConfig, LladaMoe, LladaMoeConfig, attention
from jaxdiff.models.config import Config
from jaxdiff.parallel.mesh import over_rows
from jaxdiff.policies import Fixed, Learned, Threshold, Wino, any_of
from jaxdiff.pytree import pytree
from jaxdiff.stoppers import Eos, SafeEotp
from jaxdiff.weights import plain, quantised
from tests import small
from tests.conformance.table import random_filter

WIDE = dataclasses.replace(small.CONFIG, d_model=64, n_heads=8, n_kv_heads=4)
PROMPTS = [*small.PROMPTS, [7, 8]]  # five rows: no mesh divides them
DECODERS = {
    "foreseen": dict(
        policy=any_of(
            # as it is read from disk: its arrays are bound to the first device
            jax.device_put(Learned(random_filter("local"), 0.9), jax.devices()[0]),
            Threshold([0.3, 0.5, 0.7, 0.9, 0.5]),
            Fixed(order="random"),
        ),
        stop=SafeEotp(tau=0.5, keep=2),
    ),
    "mixed": dict(policy=Wino(0.2, 0.6)),
    "dual": dict(policy=Threshold(0.3), fill=Recap([1, 2, 3, 8, 4]), stop=Eos(), cache=Dual()),
}


SHAPE = {field.name: getattr(WIDE, field.name) for field in dataclasses.fields(Config)}
MIXED = Llada2(  # a dense layer, one of routed and shared experts, blocks that align to positions, a tied head
    Llada2Config(
        **SHAPE,
        num_experts=8,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        num_shared_experts=1,
        n_group=2,
        topk_group=1,
        first_k_dense_replace=1,
        attention_block=small.BLOCK,
        tie_word_embeddings=True,
    )
)
MODELS = {"foreseen": Llada(WIDE), "mixed": MIXED, "dual": Llada(WIDE)}


@functools.cache
def params(model):
    """Random weights, more confident than fresh ones; end-of-text is likely enough to occur."""
    tree = jax.jit(model.init)(jax.random.key(0))
    tree["wte"] = tree["wte"] * 3.0
    if "head" in tree:
        head = tree["head"] * 5.0
        tree["head"] = head.at[:, small.EOS].set(head[:, small.EOS] * 1.6)
    return tree


def read_as_int8(tree):
    return plain(quantised(tree))


@functools.cache
def run(name, mesh=None, weights=lambda tree: tree):
    prompts, origin = small.batch(PROMPTS)
    result = decode(
        MODELS[name],
        weights(params(MODELS[name])),
        prompts,
        small.decoder(temperature=jnp.asarray([0.0, 0.7, 0.7, 0.0, 0.7]), **DECODERS[name]),
        gen_length=small.GEN,
        origin=origin,
        key=small.keys(len(PROMPTS)),
        mesh=None if mesh is None else make_mesh(*mesh),
    )
    return jax.device_get(result)


@pytest.mark.parametrize(
    ("mesh", "name", "weights"),
    [
        *(((8, 1), "foreseen", ()), ((4, 2), "foreseen", ()), ((1, 8), "foreseen", ())),
        *(((2, 4), "mixed", ()), ((2, 4), "dual", ())),
        ((2, 4), "mixed", (read_as_int8, quantised)),
    ],
)
def test_every_mesh_gives_the_same_tokens(mesh, name, weights):
    """In int8 too: those that one device gives with what the int8 weights stand for."""
    home, spread = run(name, None, *weights[:1]), run(name, mesh, *weights[1:])
    assert not int(home.near_ties.sum()), "draw another seed: float rounding decides here"
    assert len(set(home.nfe.tolist())) > 1  # rows end at different times
    for field in ("tokens", "commit_step", "nfe", "cheap", "work", "lengths", "reason", "near_ties"):
        np.testing.assert_array_equal(getattr(spread, field), getattr(home, field))
    np.testing.assert_allclose(spread.log_prob, home.log_prob, atol=1e-4)


@pytree
class Asked:
    """The rows of `test_a_sharded_vocabulary_is_scored_as_a_whole_one`, as `over_rows` takes them."""

    canvas: Any
    keys: Any
    features: Any


@pytest.mark.usefixtures("strict")
def test_a_sharded_vocabulary_is_scored_as_a_whole_one():
    """Two tiles on each shard, the last short; with top-p and without; a broken model predicts no padding."""
    vocabulary, rows = 8 * TILE + 1000, 2
    first, second = jax.random.split(jax.random.key(0))
    features, head = jax.random.normal(first, (rows, 3, 8)), jax.random.normal(second, (8, vocabulary))
    padded = jnp.pad(head, ((0, 0), (0, 8 * (TILE + 256) - vocabulary)))
    positions = jnp.broadcast_to(jnp.arange(3, dtype=jnp.int32), (rows, 3))
    named = jnp.array([0, TILE + 1, 5 * TILE + 77, vocabulary - 1], jnp.int32)  # in several tiles and shards

    def score(head, sampling, asked, mesh=None):
        draws = Draws(asked.keys, asked.canvas[:, 0], jnp.int32(0), asked.canvas)
        names = jnp.broadcast_to(named, (*asked.canvas.shape, len(named)))
        return believe(asked.features, head, Vocabulary(vocabulary, (7,)), sampling, draws, named=names, mesh=mesh)

    @jax.jit
    def spread(head, sampling, asked):
        mesh = make_mesh(1, 8)
        setup = Setup(small.MODEL, head, Decoder(sampling=sampling), Layout(first=0, block_length=3, attention_block=3))

        def program(setup, asked):
            return score(setup.params, setup.decoder.sampling, asked, mesh)

        return over_rows(program, mesh, setup, asked, dead=0)

    asked = Asked(positions, jax.random.split(jax.random.key(1), rows), features)
    for temperature, top_p in ((0.7, 0.9), (0.7, None), (0.0, None)):
        sampling = Sampling(temperature=temperature, top_p=top_p)
        whole, parts = jax.jit(score)(head, sampling, asked), spread(padded, sampling, asked)
        np.testing.assert_array_equal(whole.token, parts.token)
        for name in ("prob", "log_odds", "runner_up", "entropy", "gap", "log_prob", "named"):
            np.testing.assert_allclose(getattr(parts, name), getattr(whole, name), rtol=1e-4, atol=1e-5)
    assert int(spread(padded * jnp.nan, sampling, asked).token.max()) < vocabulary


@pytest.mark.parametrize("family", [Llada, LladaMoe])
def test_devices_tell_each_other_no_more_than_they_must(family, monkeypatch):
    """Within a shard of rows, so that its loop may end alone; never head or logits; what a layer needs, once.

    Nor are heads gathered where a row's attention logits are too many to be held at once.
    """
    monkeypatch.setattr(attention, "ROOM", {"cpu": 1})
    rows, prompt, shards = 4, 8, 4
    shape = SHAPE | {"vocab_size": shards * TILE + 600, "n_kv_heads": shards}
    experts = {} if family is Llada else {"num_experts": 4, "num_experts_per_tok": 2}
    model = family((LladaMoeConfig if experts else LladaConfig)(**shape, **experts))
    config, mesh = model.config, make_mesh(2, shards)
    shape = dict(rows=rows, prompt=prompt, generated=small.GEN, block=small.BLOCK)
    found = collectives(Hlo(compiled_text(model, mesh, **shape)).runs())
    for each in found:
        assert each.groups is not None, each.line
        for group in each.groups:
            assert {device // shards for device in group} == {group[0] // shards}, each.line
    fed = rows // 2 * (prompt + small.GEN) * config.d_model
    assert max(each.elements for each in found) == fed < config.vocab_size // shards
    reduced = [each for each in found if each.kind == "all-reduce"]
    read = rows // 2 * small.BLOCK * config.d_model  # all that the last layer adds up
    assert sum(each.times * each.elements for each in reduced) == (2 * config.n_layers - 1) * fed + 2 * read
    assert all(each.step for each in found)
    gathered = [each for each in found if each.kind == "all-gather"]
    assert {each.elements for each in gathered} == {shards * rows // 2 * small.BLOCK}  # summaries of the block's scores
    assert len(reduced) + len(gathered) == len(found)


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ("{{0,1,2,3},{4,5,6,7}}", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("[2,4]<=[8]", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("mesh['data'=2,'model'=4] {'model'}", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("[4,2]<=[2,4]T(1,0)", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("mesh['data'=2,'model'=4] {'data'}", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("mesh['data'=2,'model'=4] {'data','model'}", [[0, 1, 2, 3, 4, 5, 6, 7]]),
        ("mesh['data'=2,'model'=4], device_ids=([1,0]) {'model'}", None),  # forms that this decode does not give
        ("mesh['data'=2,'model'=4] {'model':(1)2}", None),
    ],
)
def test_groups_of_devices_are_read_as_each_jax_writes_them(groups, expected):
    line = f"%x = f32[4]{{0}} all-reduce(%y), channel_id=1, replica_groups={groups}, use_global_device_ids=true"
    assert Collective("all-reduce", (Array("f32", (4,)),), 1, True, line).groups == expected


def test_keys_and_values_stay_with_the_devices_of_their_heads():
    """With a cache too nothing but the score's summaries is gathered."""
    rows, prompt, shards = 4, 8, 4
    model = Llada(LladaConfig(**SHAPE | {"vocab_size": shards * TILE + 600, "n_kv_heads": shards}))
    shape = dict(rows=rows, prompt=prompt, generated=small.GEN, block=small.BLOCK)
    found = collectives(Hlo(compiled_text(model, make_mesh(2, shards), cache=Dual(), **shape)).runs())
    gathered = {each.elements for each in found if each.kind == "all-gather"}
    assert gathered == {shards * rows // 2 * small.BLOCK}
    assert {each.kind for each in found} == {"all-gather", "all-reduce"}
