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

from jaxdiff import Reason, decode
from jaxdiff.decode import api, layout, loop
from jaxdiff.decode.layout import Setup, layout_of
from jaxdiff.decode.score import TILE
from jaxdiff.decode.state import Rows, live
from jaxdiff.models import Llada
from jaxdiff.policies import Threshold
from jaxdiff.stoppers import Eos
from jaxdiff.types import REFERENCE, SHADOW
from tests import small
from tests.conformance.each_row import NUMBERS
from tests.conformance.table import CACHES, FILLS, MEETINGS, MODELS, POLICIES, STOPPERS, STRINGS, cover, draw, fewest

pytestmark = pytest.mark.usefixtures("strict")
few = settings(max_examples=4)
temperatures = st.sampled_from([0.0, 0.7])


@pytest.fixture(autouse=True)
def short_rungs(monkeypatch):
    """Canvases of a few tokens have rungs too."""
    monkeypatch.setattr(layout, "SHORTEST", 1)


def over(cases):
    """Of the scope of the module, so that the tests of a case follow each other, and share its program."""
    ids = ["-".join(case) for case in cases]
    return pytest.mark.parametrize(("policy", "stop", "cache", "fill"), cases, ids=ids, scope="module")


def parts(policy, stop, cache, fill, temperature=0.0):
    cache = CACHES[cache]() if isinstance(cache, str) else cache
    fill = FILLS[fill][0]() if isinstance(fill, str) else fill
    strings = small.stop_strings(STRINGS) if stop == "eos-strings" else None
    own = dict(policy=policy, stop=STOPPERS[stop](), cache=cache, fill=fill, temperature=temperature)
    return own | {"stop_strings": strings}


def run(policy, stop, cache="none", fill="parallel", *, temperature=0.0, **options):
    """The result in numpy, of which a slice is no program to compile."""
    numbers = parts(policy, stop, cache, fill, temperature)
    return jax.device_get(small.decode(model=model_for(cache), **numbers, **options))


def model_for(cache):
    return MODELS.get(cache, small.MODEL) if isinstance(cache, str) else small.MODEL


def test_every_stopper_meets_every_cache_that_goes_with_it():
    policies, *_, fills = (set(names) for names in zip(*cover(), strict=True))
    assert set(MEETINGS) <= {case[1:3] for case in cover()}
    assert (policies, fills) == (set(POLICIES), set(FILLS))
    for kinds in zip(*cover(), strict=True), zip(*fewest(cover()), strict=True):
        assert list(map(set, kinds))[1:] == [set(STOPPERS), set(CACHES), set(FILLS)]


@over(cover())
@few
@given(data=st.data(), seed=st.integers(0, 3), temperature=temperatures)
def test_rules_1_and_2_commits(policy, stop, cache, fill, data, seed, temperature):
    drawn, filled = draw(data, policy), draw(data, fill, FILLS)
    steady = not (drawn.waits or drawn.revises)  # every live row commits in every step
    result = run(drawn, stop, cache, filled, seed=seed, model_seed=seed, temperature=temperature)
    prompts, _ = small.batch()
    tokens, trace = np.asarray(result.tokens), np.asarray(result.commit_step)
    np.testing.assert_array_equal(tokens[:, : prompts.shape[1]], prompts)  # what was given is kept
    answer = tokens[:, prompts.shape[1] :]
    assert (answer != small.MASK).all()  # never predicted, and nothing stays masked
    log_prob = np.asarray(result.log_prob)
    assert (np.isfinite(log_prob) & (log_prob <= 0.0) & ((trace >= 0) | (log_prob == 0.0))).all()
    cheap = np.asarray(result.cheap)
    always = {"parallel": cheap == 0, "canvas": cheap > 0, "window": cheap > 0}  # others have none for one position
    assert always.get(fill, cheap >= 0).all()
    for row in range(4):
        steps = trace[row][trace[row] >= 0]
        # A model that attends in blocks also fills what makes its last one whole, and stores: no trace shows either.
        apart, blocks = (3 * small.BLOCK, 4) if cache in MODELS else (0, 2)
        later = small.BLOCK if fill in ("adjust", "head") else 0  # what a fill leaves of a commit may take a step each
        bound = apart + (small.GEN if steady else blocks * (int(np.max(drawn.budget(4, small.BLOCK))) + later))
        assert 0 < result.nfe[row] <= bound
        if steady and not apart and result.reason[row] == Reason.FULL:
            assert set(steps) == set(range(int(result.nfe[row])))  # each forward committed something
        shadow = small.BLOCK if SHADOW in drawn.needs else 0  # fed beside the canvas by each forward
        fed = 1 + shadow / (len(small.PROMPTS[row]) + small.GEN)
        if cache == "none" and fill == "parallel" and stop in ("none", "eos"):
            assert np.isclose(result.work[row], fed * result.nfe[row], rtol=1e-6)
        assert float(result.work[row]) <= fed * int(result.nfe[row]) + int(result.cheap[row]) + 1e-4
        # Those of a model that attends in blocks are counted from its first token.
        first = len(small.PROMPTS[row]) if cache in MODELS else 0
        number = (first + np.arange(small.GEN)) // small.BLOCK
        blocks = [trace[row][(number == n) & (trace[row] >= 0)] for n in np.unique(number)]
        for left, right in itertools.pairwise([block for block in blocks if block.size]):
            assert left.max() < right.min()  # block after block
        if result.reason[row] == Reason.STRING:
            assert stop == "eos-strings"
            assert len(steps) == result.lengths[row]
            assert any(string in small.text(answer[row]) for string in STRINGS)
        elif stop == "eos-strings":
            assert not any(string in small.text(answer[row]) for string in STRINGS)
        if result.reason[row] != Reason.FULL:
            assert stop != "none"
            end = len(steps)
            if stop == "eos":
                assert end == result.lengths[row]
                assert answer[row, end - 1] in (small.EOS, small.EOT)
            assert (trace[row, :end] >= 0).all()
            assert (trace[row, end:] == -1).all()
            assert (answer[row, end:] == small.EOS).all()


@over(cover())
@few
@given(data=st.data(), order=st.permutations(range(4)), neighbours=st.lists(st.integers(0, 3), min_size=4, max_size=4))
def test_rule_3_rows_do_not_see_each_other(policy, stop, cache, fill, data, order, neighbours):
    drawn, filled, temperature = draw(data, policy), draw(data, fill, FILLS), data.draw(temperatures)
    home = run(drawn, stop, cache, filled, temperature=temperature)
    for places in (order, neighbours):
        away = run(drawn, stop, cache, filled, order=places, temperature=temperature)
        decided = [(place, row) for place, row in enumerate(places) if not home.near_ties[row] + away.near_ties[place]]
        assert decided  # float rounding may decide the others
        for place, row in decided:
            for field in ("tokens", "commit_step", "nfe", "lengths", "cheap", "work"):
                np.testing.assert_array_equal(getattr(away, field)[place], getattr(home, field)[row])
            np.testing.assert_allclose(away.log_prob[place], home.log_prob[row], atol=1e-4)


@over(fewest(cover())[:2])
def test_rule_3_padding_does_not_matter(policy, stop, cache, fill):
    build, names = POLICIES[policy]
    numbers = parts(build(**{name: NUMBERS[name] for name in names}), stop, cache, fill, 0.7)
    padded, home = (small.decode(**numbers, model=model_for(cache), multiple=each) for each in (10, 1))
    assert padded.tokens.shape[1] > home.tokens.shape[1]
    np.testing.assert_array_equal(padded.tokens[:, -small.GEN :], home.tokens[:, -small.GEN :])
    for field in ("commit_step", "nfe", "cheap", "work"):
        np.testing.assert_array_equal(getattr(padded, field), getattr(home, field))
    np.testing.assert_allclose(padded.log_prob, home.log_prob, atol=1e-4)


@settings(max_examples=1)
@given(data=st.data())
def test_rule_3_devices_do_not_matter(data):
    """Rows laid over 8 simulated devices give the tokens and traces that they give on one."""
    drawn = draw(data, "any_of")  # a threshold, ranks and draws
    mesh = Mesh(np.asarray(jax.devices()), ("data",))
    rows, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))
    prompts, origin = small.batch([*small.PROMPTS, *small.PROMPTS[::-1]])
    decoder, options = small.decoder(policy=drawn, stop=Eos(), temperature=0.7), dict(gen_length=small.GEN)
    home = decode(small.MODEL, small.params(), prompts, decoder, origin=origin, key=small.keys(8), **options)
    spread = decode(
        small.MODEL,
        jax.device_put(small.params(), whole),
        jax.device_put(jnp.asarray(prompts), rows),
        decoder,
        origin=jax.device_put(jnp.asarray(origin), rows),
        key=jax.device_put(small.keys(8), rows),
        **options,
    )
    assert len(spread.tokens.sharding.device_set) == 8
    assert not int(home.near_ties.sum()), "draw another seed: float rounding decides here"
    for field in ("tokens", "commit_step", "nfe"):
        np.testing.assert_array_equal(getattr(spread, field), getattr(home, field))


@over(cover())
@settings(max_examples=3)
@given(data=st.data(), temperature=temperatures)
def test_rule_4_values_are_traced(policy, stop, cache, fill, data, temperature):
    run(draw(data, policy), stop, cache, draw(data, fill, FILLS))  # may compile
    before = loop.run._cache_size()
    run(draw(data, policy), stop, cache, draw(data, fill, FILLS), temperature=temperature)
    assert loop.run._cache_size() == before


# The loop knows nothing of what the parts do in a step: two decoders that share no part, and a model that attends in
# blocks, whose steps also store.
LOOPED = [*fewest(cover())[:2], next(case for case in cover() if case[2] == "block")]


@over(LOOPED)
@settings(max_examples=1)
@given(data=st.data())
def test_rule_5_the_while_loop_is_a_python_loop(policy, stop, cache, fill, data):
    """What policies do in a step, the other rules see; here it is the loop around the step that is run twice."""
    call = prepared(parts(draw(data, policy), stop, cache, draw(data, fill, FILLS), 0.7), model_for(cache))
    state = loop.begin(call.setup, call.rows)
    once = jax.jit(lambda state: loop.step(call.setup, state))
    while bool(live(call.setup.model, state).any()):
        state = once(state)
    by_hand = loop.finish(call.setup, state)
    for left, right in zip(jax.tree.leaves(by_hand), jax.tree.leaves(call.run()), strict=True):
        np.testing.assert_array_equal(left, right)


def prepared(parts, model=small.MODEL, params=None, gen_length=small.GEN):
    prompts, origin = small.batch()
    params = small.params(model=model) if params is None else params
    options = dict(gen_length=gen_length, origin=origin, key=small.keys(4))
    decoder = small.decoder(**parts)
    if REFERENCE in decoder.policy.needs:
        options["reference"] = small.decode(
            **(parts | {"policy": POLICIES["fixed"][0](16), "cache": CACHES["none"]()}), model=model
        ).tokens
    return api.prepare(model, params, prompts, decoder, **options)


def traced_program(parts, model=small.MODEL):
    call = prepared(parts, model, jax.eval_shape(model.init, jax.random.key(0)))
    return loop.run.trace(call.setup, call.rows)


# What one of the three remembers, the others do not know.
ALONE = [
    *((policy, "none", "parallel") for policy in POLICIES),
    *(("fixed", stop, fill) for stop, fill in itertools.zip_longest(STOPPERS, FILLS, fillvalue="parallel")),
]


@pytest.mark.parametrize(("policy", "stop", "fill"), ALONE)
@settings(max_examples=1)
@given(data=st.data())
def test_rule_4_what_is_remembered_belongs_to_the_row_and_not_to_the_canvas(policy, stop, fill, data):
    """So that a slot is refilled whole, and goes on on a wider canvas."""
    decoder = small.decoder(**parts(draw(data, policy), stop, "none", fill))

    def shapes(length):
        laid = layout_of(small.MODEL, decoder, first=6, generated=length, block=small.BLOCK)
        zero, canvas = jnp.zeros(5, jnp.int32), jnp.zeros((5, 6 + length), jnp.int32)
        rows = Rows(canvas, zero, zero, small.keys(5))
        state = jax.eval_shape(lambda: loop.begin(Setup(small.MODEL, (), decoder, laid), rows))
        return jax.tree.leaves((state.policy, state.fill, state.stop, state.text))

    assert shapes(16) == shapes(32)
    assert all(leaf.shape[0] == 5 for leaf in shapes(16))


@over(cover())
@settings(max_examples=1)
@given(data=st.data())
def test_rule_6_one_while_loop_and_no_callback(policy, stop, cache, fill, data):
    traced = traced_program(parts(draw(data, policy), stop, cache, fill), model_for(cache))
    assert [eqn.primitive.name for eqn in traced.jaxpr.eqns].count("while") == 1
    assert "callback" not in str(traced.jaxpr)


@pytest.mark.parametrize("cache", ["none", "prefix"])
def test_rule_7_no_scores_of_the_whole_canvas(cache):
    """With a vocabulary of four tiles: no float32 [B, L, V], nor a whole [B, W, V]; noise takes two draws a tile."""
    vocabulary = 4 * TILE - 1
    model = Llada(dataclasses.replace(small.CONFIG, vocab_size=vocabulary))
    text = traced_program(parts(Threshold(0.9), "eos", cache, "parallel"), model).lower().compile().as_text()
    shapes = {tuple(map(int, dims.split(","))) for dims in re.findall(r"f32\[([\d,]+)\]", text)}
    assert any(TILE in shape for shape in shapes)  # the tiles are there
    assert max(int(np.prod(shape)) for shape in shapes if vocabulary not in shape) <= 2 * 4 * small.BLOCK * TILE
    assert not [shape for shape in shapes if vocabulary in shape and small.CONFIG.d_model not in shape]
