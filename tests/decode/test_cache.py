"""Caches: each equals the published loop in numpy, its exact mode equals no cache, and rows keep to themselves."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import InputError, infill
from jaxdiff.caches import CACHES as REGISTRY
from jaxdiff.caches import BlockCausal, Dual, Frozen, FrozenAtCommit, FrozenPrompt, NoCache, Prefix, Seeded, SeededDual
from jaxdiff.decode import api, loop
from jaxdiff.decode.state import live
from jaxdiff.models import Llada
from jaxdiff.parallel.mesh import compiling_for
from jaxdiff.policies import Fixed, Threshold
from jaxdiff.policies.base import PolicyBase, propose
from jaxdiff.pytree import pytree
from jaxdiff.stoppers import SafeEotp
from tests import reference, small
from tests.cached import Cached
from tests.conformance.each_row import EachRow
from tests.decode.test_reference import CASES

CACHES = {  # the compiled cache, and the published loop's name for it
    "prefix": (Prefix, "prefix"),
    "dual": (Dual, "dual"),
    "frozen": (Frozen, "clean"),
    "frozen-commit": (FrozenAtCommit, "commit"),
    "frozen-prompt": (FrozenPrompt, "prompt"),
}
over_caches = pytest.mark.parametrize("cache", CACHES)


def run(cache, *, policy=None, **options):
    return small.decode(cache=cache, policy=Threshold(0.6) if policy is None else policy, **options)


def assert_same(left, right, fields=("tokens", "commit_step", "nfe", "lengths", "reason")):
    assert not int(left.near_ties.sum() + right.near_ties.sum()), "draw another seed: float rounding decides here"
    for field in fields:
        np.testing.assert_array_equal(getattr(left, field), getattr(right, field))


def assert_by_hand(result, name, *, seed=0, rule="threshold:tau=0.6", refresh=None, model=small.MODEL):
    """The plain loop, row by row, gives this result."""
    assert not int(result.near_ties.sum()), "draw another seed: float rounding decides here"
    for row, prompt in enumerate(small.PROMPTS):
        forwards = Cached(small.params(seed, model), prompt, name, refresh, model)
        tokens, trace, nfe = reference.decode(
            forwards,
            prompt,
            CASES[rule](),
            gen=small.GEN,
            block=small.BLOCK,
            mask=small.MASK,
            eos_ids=(small.EOS, small.EOT),
        )
        np.testing.assert_array_equal(np.asarray(result.tokens[row, -small.GEN :]), tokens)
        np.testing.assert_array_equal(np.asarray(result.commit_step[row]), trace)
        assert int(result.nfe[row]) == nfe
        np.testing.assert_allclose(result.work[row], forwards.fed / (len(prompt) + small.GEN), rtol=1e-5)


@pytest.mark.usefixtures("strict")
@over_caches
def test_each_cache_equals_the_published_loop(cache):
    make, name = CACHES[cache]
    plain = run(NoCache())
    for refresh in (None, 3):
        result = run(make() if refresh is None else make(refresh=refresh))
        assert_by_hand(result, name, refresh=refresh)
        assert not np.array_equal(result.commit_step, plain.commit_step), "the case does not exercise the cache"


@pytest.mark.usefixtures("strict")
@over_caches
def test_a_cache_that_is_rebuilt_at_every_step_is_none(cache):
    assert_same(run(CACHES[cache][0](refresh=1)), run(NoCache()))


@pytest.mark.usefixtures("strict")
@over_caches
def test_rows_keep_to_themselves(cache):
    """Alone, and among others in other places, where rows wait, end and rebuild at other steps."""
    home = run(CACHES[cache][0]())
    for places in ([3, 0, 2, 1], [2, 2, 1, 3]):
        away = run(CACHES[cache][0](), order=places)
        for place, row in enumerate(places):
            for field in ("tokens", "commit_step", "nfe", "work"):
                np.testing.assert_array_equal(getattr(away, field)[place], getattr(home, field)[row])


@pytest.mark.usefixtures("strict")
@pytest.mark.parametrize("cache", ["prefix", "dual", "frozen"])
def test_a_shifted_model_feeds_from_the_column_before_the_window(cache):
    make, name = CACHES[cache]
    plain, result = run(NoCache(), model=small.DREAM), run(make(), model=small.DREAM)
    assert_by_hand(result, name, model=small.DREAM)
    assert not np.array_equal(result.commit_step, plain.commit_step), "the case does not exercise the cache"
    assert_same(run(make(refresh=1), model=small.DREAM), plain)


@pytest.mark.usefixtures("strict")
def test_a_prompt_that_does_not_see_the_answer_is_cached_exactly():
    model = Llada(dataclasses.replace(small.CONFIG, prefix_lm=True))
    cached, plain = (run(cache, model=model) for cache in (FrozenPrompt(), NoCache()))
    assert_same(cached, plain)
    assert not np.array_equal(run(NoCache()).commit_step, plain.commit_step), "the mask hides nothing"
    assert_by_hand(cached, "prompt", model=model)  # the mask, in numpy; with a bidirectional one the two differ


@pytest.mark.usefixtures("strict")
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_the_cache_of_a_block_causal_model_is_exact(temperature):
    """The tokens of no cache; one forward more for a prompt with whole blocks, and for each block but the last."""
    prompts, policy = small.PROMPTS * 2, EachRow((Threshold(0.6), Fixed()), np.repeat([0, 1], len(small.PROMPTS)))
    options = dict(model=small.SDAR, temperature=temperature, policy=policy, prompts=prompts, order=range(len(prompts)))
    plain, cached = (run(cache, **options) for cache in (NoCache(), BlockCausal()))
    assert_same(plain, cached, fields=("tokens", "commit_step", "lengths"))
    for row, prompt in enumerate(prompts):
        kept = len(prompt) // 4
        blocks = -(-(len(prompt) + small.GEN) // 4) - kept
        assert int(cached.nfe[row]) == int(plain.nfe[row]) + (kept > 0) + blocks - 1
        whole = 4 * (kept + blocks)
        fed = 4 * kept + 4 * (int(plain.nfe[row]) + blocks - 1)
        np.testing.assert_allclose(cached.work[row], fed / whole, rtol=1e-5)
        assert float(plain.work[row]) == int(plain.nfe[row])


@pytest.mark.usefixtures("strict")
def test_blocks_may_be_parts_of_those_that_a_model_attends_in():
    """Left to right, each until no mask is left there, the whole one fed; caches of what stands left of that are exact,
    and a token that is read in the block before is fed from there.
    """
    options = dict(model=small.FAST, seed=1)
    plain, *cached = (run(cache, **options) for cache in (NoCache(), BlockCausal(), Prefix()))
    for other in cached:
        assert_same(plain, other, fields=("tokens", "commit_step", "lengths"))
    trace = np.asarray(plain.commit_step)
    for row, prompt in enumerate(small.PROMPTS):
        number = (len(prompt) + np.arange(small.GEN)) // small.BLOCK
        spans = [trace[row][number == n] for n in np.unique(number)]
        assert all(left.max() < right.min() for left, right in itertools.pairwise(spans))
        assert int(cached[0].nfe[row]) == int(plain.nfe[row]) + 1  # of two blocks the first is stored


@pytest.mark.usefixtures("strict")
def test_a_pass_that_stores_commits_the_first_token_of_the_next_block():
    """In holes of a canvas: only where that token is one; the policy decides all others."""
    canvas = np.resize(np.arange(10, 34), (2, 48)).copy()
    canvas[0, [1, 16, 17, 33, 34]] = small.MASK
    canvas[1, [16, 32]] = small.MASK
    options = dict(policy=Fixed(), cache=Seeded(), block_length=small.BLOCK)
    result = infill(small.FAST, small.params(model=small.FAST), canvas, small.decoder(**options))
    tokens, trace = np.asarray(result.tokens), np.asarray(result.commit_step)
    np.testing.assert_array_equal(tokens[canvas != small.MASK], canvas[canvas != small.MASK])
    assert trace[0, [1, 16, 17]].tolist() == [0, 1, 2]
    assert sorted(trace[0, [33, 34]]) == [3, 4]
    assert trace[1, [16, 32]].tolist() == [0, 1]
    assert result.nfe.tolist() == [6, 2]  # a pass that stores before column 33 commits nothing
    for row, column in ((0, 16), (1, 16), (1, 32)):
        logits = small.logits(small.params(model=small.FAST), tokens[row, : column + 1], small.FAST)[-1]
        logits[small.MASK] = -np.inf
        assert tokens[row, column] == logits.argmax()


def test_a_row_that_waits_writes_no_keys_or_values():
    """Row 1 is done before the decode begins, row 2 after the first step; the KV cache of both stays as it is."""
    prompts, origin = small.batch()
    decoder = small.decoder(policy=Threshold(0.6), cache=Frozen())
    options = dict(origin=origin, gen_length=small.GEN, key=small.keys(4))
    call = api.prepare(small.MODEL, small.params(), prompts, decoder, **options)
    state = loop.begin(call.setup, call.rows)
    state = dataclasses.replace(state, end=state.end.at[1].set(0))
    step = jax.jit(lambda state: loop.step(call.setup, state))
    first = step(state)
    assert all(not x[:, 1].any() and x[:, 0].any() and x[:, 2].any() for x in jax.tree.leaves(first.kv))
    state, wrote = dataclasses.replace(first, end=first.end.at[2].set(0)), False
    while bool(live(small.MODEL, state).any()):
        after = step(state)
        for old, new in zip(jax.tree.leaves(state.kv), jax.tree.leaves(after.kv), strict=True):
            np.testing.assert_array_equal(old[:, 1:3], new[:, 1:3])
            wrote |= bool((old[:, 0] != new[:, 0]).any())
        state = after
    assert wrote


@over_caches
def test_what_a_tpu_compiles_decodes_alike(cache):
    """There keys and values are not written where no later forward looks at them."""
    expected = run(CACHES[cache][0]())
    with compiling_for("tpu"):
        found = run(CACHES[cache][0]())
    assert_same(expected, found)


def test_filling_holes_with_a_cache():
    """Blocks whose holes are done are passed over; rebuilt at each step a cache is none, and what is known is kept."""
    canvas = np.resize(np.arange(10, 34), (2, 24)).copy()
    canvas[:, [1, 2, 5, 17, 18, 20, 22]] = small.MASK

    def filled(cache):
        return infill(small.MODEL, small.params(), canvas, small.decoder(policy=Threshold(0.6), cache=cache))

    plain = filled(NoCache())
    for cache in (Frozen(refresh=1), Dual(refresh=1)):
        assert_same(filled(cache), plain)
    frozen = filled(Frozen())
    known = canvas != small.MASK
    np.testing.assert_array_equal(np.asarray(frozen.tokens)[known], canvas[known])
    assert (np.asarray(frozen.tokens) != small.MASK).all()


@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_guidance_keeps_keys_and_values_of_both_copies(cache):
    make, plain = CACHES[cache][0], run(NoCache(), cfg_scale=1.5)
    assert_same(run(make(refresh=1), cfg_scale=1.5), plain)
    approximate = run(make(), cfg_scale=1.5)
    assert not np.array_equal(approximate.commit_step, plain.commit_step)
    assert not (np.asarray(approximate.nfe) % 2).any()
    assert (np.asarray(plain.work) == np.asarray(plain.nfe)).all()  # both copies are fed
    assert (np.asarray(approximate.work) < np.asarray(approximate.nfe)).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            dict(cache=Dual(), stop=SafeEotp()),
            "cache: found dual with a stopper that asks for end-of-text on the whole",
        ),
        (dict(cache=BlockCausal()), "cache: found block with a model whose positions all see each other"),
        (dict(cache=Seeded()), "cache: found seeded with a model whose positions all see each other"),
        (dict(cache=Seeded(), model=small.SDAR), "reads a block's first token inside the block.*take cache block"),
    ],
)
def test_what_does_not_go_together_is_refused_before_compilation(options, words):
    before = loop.run._cache_size()
    with pytest.raises(InputError, match=words):
        run(**options)
    assert loop.run._cache_size() == before


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("triple", "cache: found 'triple', expected one of none, prefix, dual, frozen, block, seeded"),
        ("dual:freeze=clean", "cache dual: found argument 'freeze=clean', expected refresh="),
        ("frozen:refresh=0", "refresh: found 0, expected a whole number"),
        ("frozen:freeze=often", "cache frozen freeze: found 'often', expected one of clean, commit, prompt"),
        ("frozen:refresh=1,fresh=2", "found argument 'fresh=2', expected refresh=, freeze="),
    ],
)
def test_a_name_that_is_not_known_is_refused(text, words):
    with pytest.raises(InputError, match=words):
        REGISTRY.parse(text)


def test_a_cache_by_its_name():
    assert type(REGISTRY.parse("frozen:refresh=8,freeze=commit")) is FrozenAtCommit
    assert type(REGISTRY.parse("frozen")) is Frozen
    assert int(REGISTRY.parse("dual:refresh=8").refresh) == 8


@pytree
class TakeBack(PolicyBase):
    """Remasks commits that the model finds unlikely by now: it reads beliefs where nothing is masked."""

    revises = True

    def budget(self, rows, window):
        return jnp.full((rows,), 3 * window, jnp.int32)

    def select(self, state, score, key):
        made = propose(score, score.prob > 0.7, score.log_odds, score.prob - 0.7)
        return dataclasses.replace(made, remask=score.editable & (score.standing < -5.0)), state


def test_beliefs_of_a_narrow_window_do_not_hang_on_a_neighbour_that_takes_a_wide_one():
    rng = np.random.default_rng(0)
    prompts = [rng.integers(4, 60, length).tolist() for length in (3, 6, 1, 9)]
    options = dict(policy=TakeBack(), cache=SeededDual(), block_length=4, model=small.FAST, model_seed=1)
    together = small.decode(prompts=prompts, gen_length=32, **options)
    for row in range(3):
        alike = small.decode(prompts=prompts, gen_length=32, order=[row] * 4, **options)
        assert not int(together.near_ties[row] + alike.near_ties[0])
        for field in ("tokens", "commit_step", "nfe", "work"):
            np.testing.assert_array_equal(getattr(alike, field)[0], getattr(together, field)[row])
