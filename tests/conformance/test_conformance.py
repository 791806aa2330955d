"""Rules 1 to 7 of the design, and that an exact cache is one, for every policy; hypothesis draws values, not shapes."""

import dataclasses
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxdiff import Dual, Frozen, Llada, Prefix, decode
from jaxdiff.decode import api, loop
from jaxdiff.decode.score import TILE
from jaxdiff.policies import Fixed, Threshold
from tests import small
from tests.conformance.table import CACHES, POLICIES, STOPPERS, cover, draw

pytestmark = pytest.mark.usefixtures("strict")
few = settings(max_examples=4)


def over(offset):
    cases = cover(offset)
    return pytest.mark.parametrize(("policy", "stop", "cache"), cases, ids=["-".join(case) for case in cases])


def bound(policy, reference):
    """`decode` finds the reference of a policy that lacks one; whoever calls the loop itself gives it."""
    return policy.bind(reference()) if getattr(policy, "lacks_reference", False) else policy


temperatures = st.sampled_from([0.0, 0.7])


def run(policy, stop, cache="none", *, order=(0, 1, 2, 3), seed=0, model_seed=0, temperature=0.0):
    prompts, origin = small.batch()
    order = list(order)
    return decode(
        small.MODEL,
        small.params(model_seed),
        prompts[order],
        origin=origin[order],
        key=small.keys(4, seed)[jnp.asarray(order)],
        policy=policy,
        stop=STOPPERS[stop](),
        cache=CACHES[cache]() if isinstance(cache, str) else cache,
        gen_length=small.GEN,
        block_length=small.BLOCK,
        temperature=temperature,
    )


@over(0)
@few
@given(data=st.data(), seed=st.integers(0, 3), temperature=temperatures)
def test_rules_1_and_2_commits(policy, stop, cache, data, seed, temperature):
    drawn = draw(data, policy)
    steady = not drawn.waits  # every live row commits in every step
    result = run(drawn, stop, cache, seed=seed, model_seed=seed, temperature=temperature)
    prompts, _ = small.batch()
    tokens, trace = np.asarray(result.tokens), np.asarray(result.commit_step)
    np.testing.assert_array_equal(tokens[:, : prompts.shape[1]], prompts)  # what was given is kept
    answer = tokens[:, prompts.shape[1] :]
    assert (answer != small.MASK).all()  # never predicted, and nothing stays masked
    for row in range(4):
        steps = trace[row][trace[row] >= 0]
        bound = small.GEN if steady else 2 * int(np.max(drawn.steps))
        assert 0 < result.nfe[row] <= bound
        if steady and result.reason[row] == loop.Reason.FULL:
            assert set(steps) == set(range(int(result.nfe[row])))  # each forward committed something
        blocks = trace[row].reshape(-1, small.BLOCK)
        for left, right in itertools.pairwise(blocks[(blocks >= 0).any(1)]):
            assert left[left >= 0].max() < right[right >= 0].min()  # block after block
        if result.reason[row] == loop.Reason.STOPPED:
            assert stop != "none"
            end = len(steps)
            if stop == "eos":
                assert end == result.lengths[row]
                assert answer[row, end - 1] in (small.EOS, small.EOT)
            assert (trace[row, :end] >= 0).all()
            assert (trace[row, end:] == -1).all()
            assert (answer[row, end:] == small.EOS).all()


@over(1)
@few
@given(data=st.data(), order=st.permutations(range(4)), neighbours=st.lists(st.integers(0, 3), min_size=4, max_size=4))
def test_rule_3_rows_do_not_see_each_other(policy, stop, cache, data, order, neighbours):
    drawn, temperature = draw(data, policy), data.draw(temperatures)
    home = run(drawn, stop, cache, temperature=temperature)
    for places in (order, neighbours):
        away = run(drawn, stop, cache, order=places, temperature=temperature)
        decided = [(place, row) for place, row in enumerate(places) if not home.near_ties[row] + away.near_ties[place]]
        assert decided  # float rounding may decide the others
        for place, row in decided:
            for field in ("tokens", "commit_step", "nfe", "lengths"):
                np.testing.assert_array_equal(getattr(away, field)[place], getattr(home, field)[row])


@pytest.mark.parametrize("multiple", [7, 10])
def test_rule_3_padding_does_not_matter(multiple):
    prompts, origin = small.batch(multiple=multiple)
    options = dict(gen_length=small.GEN, block_length=small.BLOCK, key=small.keys(4), temperature=0.7)
    padded = decode(small.MODEL, small.params(), prompts, origin=origin, **options)
    plain, start = small.batch()
    home = decode(small.MODEL, small.params(), plain, origin=start, **options)
    assert prompts.shape[1] > plain.shape[1]
    np.testing.assert_array_equal(padded.tokens[:, -small.GEN :], home.tokens[:, -small.GEN :])
    np.testing.assert_array_equal(padded.commit_step, home.commit_step)


@pytest.mark.parametrize("policy", ["fixed", "threshold", "fixed-random"])
@settings(max_examples=1)
@given(data=st.data())
def test_rule_3_devices_do_not_matter(policy, data):
    """Rows laid over 8 simulated devices give the tokens and traces that they give on one."""
    drawn = draw(data, policy)
    mesh = Mesh(np.asarray(jax.devices()), ("data",))
    rows, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))
    prompts, origin = small.batch([*small.PROMPTS, *small.PROMPTS[::-1]])
    options = dict(
        policy=drawn, stop=STOPPERS["eos"](), gen_length=small.GEN, block_length=small.BLOCK, temperature=0.7
    )
    home = decode(small.MODEL, small.params(), prompts, origin=origin, key=small.keys(8), **options)
    spread = decode(
        small.MODEL,
        jax.device_put(small.params(), whole),
        jax.device_put(jnp.asarray(prompts), rows),
        origin=jax.device_put(jnp.asarray(origin), rows),
        key=jax.device_put(small.keys(8), rows),
        **options,
    )
    assert len(spread.tokens.sharding.device_set) == 8
    assert not int(home.near_ties.sum()), "draw another seed: float rounding decides here"
    for field in ("tokens", "commit_step", "nfe"):
        np.testing.assert_array_equal(getattr(spread, field), getattr(home, field))


@over(0)
@settings(max_examples=3)
@given(data=st.data(), temperature=temperatures)
def test_rule_4_values_are_traced(policy, stop, cache, data, temperature):
    run(draw(data, policy), stop, cache)  # may compile
    before = loop.run._cache_size()
    run(draw(data, policy), stop, cache, temperature=temperature)
    assert loop.run._cache_size() == before


@over(1)
@settings(max_examples=1)
@given(data=st.data())
def test_rule_5_the_while_loop_is_a_python_loop(policy, stop, cache, data):
    drawn = bound(draw(data, policy), lambda: run(Fixed(), stop, temperature=0.7).tokens)
    prompts, origin = small.batch()
    tree, keys = small.params(), small.keys(4)
    numbers = whole_settings(drawn, stop, cache, 0.7)
    masks = np.full((4, small.GEN), small.MASK, np.int32)
    canvas = jnp.concatenate([jnp.asarray(prompts), jnp.asarray(masks)], axis=1)
    state = loop.begin(small.MODEL, canvas, jnp.asarray(origin), keys, numbers)
    once = jax.jit(lambda state: loop.step(small.MODEL, tree, numbers, state))
    while bool(loop.holes(small.MODEL, state).any()):
        state = once(state)
    by_hand = loop.finish(small.MODEL, numbers, state)
    compiled = run(drawn, stop, cache, temperature=0.7)
    for left, right in zip(jax.tree.leaves(by_hand), jax.tree.leaves(compiled), strict=True):
        np.testing.assert_array_equal(left, right)


def whole_settings(policy, stop, cache, temperature):
    size = {"rows": 4, "first": small.batch()[0].shape[1], "generated": small.GEN, "block": small.BLOCK}
    return api._settings(
        small.MODEL, policy, STOPPERS[stop](), CACHES[cache](), temperature, None, False, False, **size
    )


def traced_program(model=small.MODEL, policy=None, stop="eos", cache="none"):
    prompts, origin = small.batch()
    canvas = jnp.zeros((4, prompts.shape[1] + small.GEN), jnp.int32)
    tree = jax.eval_shape(model.init, jax.random.key(0))
    settings = whole_settings(policy or Threshold(0.9), stop, cache, 0.0)
    return loop.run.trace(model, tree, canvas, jnp.asarray(origin), small.keys(4), settings)


@over(0)
@settings(max_examples=1)
@given(data=st.data())
def test_rule_6_one_while_loop_and_no_callback(policy, stop, cache, data):
    canvas = (4, small.batch()[0].shape[1] + small.GEN)
    traced = traced_program(
        policy=bound(draw(data, policy), lambda: jnp.zeros(canvas, jnp.int32)), stop=stop, cache=cache
    )
    assert [eqn.primitive.name for eqn in traced.jaxpr.eqns].count("while") == 1
    assert "callback" not in str(traced.jaxpr)


@pytest.mark.parametrize("cache", ["none", "prefix"])
def test_rule_7_no_scores_of_the_whole_canvas(cache):
    """With a vocabulary of four tiles: no float32 [B, L, V], nor a whole [B, W, V]; noise takes two draws a tile."""
    vocabulary = 4 * TILE - 1
    model = Llada(dataclasses.replace(small.CONFIG, vocab_size=vocabulary))
    text = traced_program(model, cache=cache).lower().compile().as_text()
    shapes = {tuple(map(int, dims.split(","))) for dims in re.findall(r"f32\[([\d,]+)\]", text)}
    assert any(TILE in shape for shape in shapes)  # the tiles are there
    assert max(int(np.prod(shape)) for shape in shapes if vocabulary not in shape) <= 2 * 4 * small.BLOCK * TILE
    assert not [shape for shape in shapes if vocabulary in shape and small.CONFIG.d_model not in shape]


EXACT = (Prefix(refresh=1), Dual(refresh=1), Frozen(refresh=1))


@pytest.mark.parametrize("policy", POLICIES)
@settings(max_examples=2)
@given(data=st.data(), temperature=temperatures)
def test_rule_8_a_cache_that_is_rebuilt_at_every_step_changes_nothing(policy, data, temperature):
    drawn = draw(data, policy)
    cache = EXACT[list(POLICIES).index(policy) % len(EXACT)]
    home = run(drawn, "eos", temperature=temperature)
    away = run(drawn, "eos", cache, temperature=temperature)
    decided = np.flatnonzero(np.asarray(home.near_ties) + np.asarray(away.near_ties) == 0)
    assert decided.size
    for field in ("tokens", "commit_step", "nfe", "lengths"):
        np.testing.assert_array_equal(getattr(away, field)[decided], getattr(home, field)[decided])
