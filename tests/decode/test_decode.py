"""What a user of `decode` and `infill` relies on, beside the parity and the conformance table."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import InputError, decode, infill, pad_prompts
from jaxdiff.decode import arrays, loop
from jaxdiff.policies import Entropy, EntropyBounded, Factor, Fixed, FixedDream, Margin, RemdmCap, RemdmLoop, Threshold
from jaxdiff.policies.base import PolicyBase
from jaxdiff.pytree import pytree
from jaxdiff.stoppers import Eos
from tests import small


def test_eos_gives_the_text_of_the_whole_decode_and_saves_forwards():
    saved = 0
    for seed in range(3):
        whole, stopped = (small.decode(model_seed=seed, **parts) for parts in ({}, {"stop": Eos()}))
        np.testing.assert_array_equal(whole.lengths, stopped.lengths)
        for row, length in enumerate(np.asarray(whole.lengths)):
            end = whole.tokens.shape[1] - small.GEN + length
            np.testing.assert_array_equal(whole.tokens[row, :end], stopped.tokens[row, :end])
        saved += int((whole.nfe - stopped.nfe).sum())
        assert (np.asarray(stopped.nfe) <= np.asarray(whole.nfe)).all()
    assert saved > 0


def test_a_vector_of_thresholds_sweeps_rows_of_one_program():
    taus = [0.2, 0.5, 0.8, 1.0]
    swept = small.decode(order=[1] * 4, policy=Threshold(jnp.asarray(taus)))
    for row, tau in enumerate(taus):
        one = small.decode(order=[1] * 4, policy=Threshold(tau))
        np.testing.assert_array_equal(swept.tokens[row], one.tokens[row])
        assert swept.nfe[row] == one.nfe[row]
    assert swept.nfe[0] < swept.nfe[3]


def test_infilling_keeps_what_is_known_and_fills_every_hole():
    canvas = np.array([[5, small.MASK, 7, small.MASK, small.MASK, 9], [small.MASK] * 6])
    result = infill(small.MODEL, small.params(), canvas)
    known = canvas != small.MASK
    np.testing.assert_array_equal(np.asarray(result.tokens)[known], canvas[known])
    assert (np.asarray(result.tokens) != small.MASK).all()
    assert result.nfe.tolist() == [3, 6]
    assert ((np.asarray(result.commit_step) >= 0) == ~known).all()


def test_infilling_by_blocks_skips_blocks_without_holes():
    canvas = np.full((1, 12), 7)
    canvas[0, [1, 9, 10]] = small.MASK
    result = infill(small.MODEL, small.params(), canvas, small.decoder(block_length=4))
    assert result.nfe.tolist() == [3]
    assert result.commit_step[0, 1] == 0  # the first block's hole, then the third's
    assert sorted(np.asarray(result.commit_step)[0, 9:11].tolist()) == [1, 2]


def test_infilling_without_a_hole_costs_nothing():
    result = infill(small.MODEL, small.params(), np.array([[5, 6, 7]]))
    assert result.nfe.tolist() == [0]
    assert result.tokens.tolist() == [[5, 6, 7]]


def test_infilling_equals_decoding_where_the_holes_are_a_suffix():
    prompts, _ = small.batch([small.PROMPTS[1]])
    canvas = np.concatenate([prompts, np.full((1, 8), small.MASK)], axis=1)
    filled = infill(small.MODEL, small.params(), canvas)
    decoded = decode(small.MODEL, small.params(), prompts, small.decoder(), gen_length=8)
    np.testing.assert_array_equal(filled.tokens, decoded.tokens)


def test_decode_runs_under_an_outer_jit():
    prompts, origin = small.batch()

    @jax.jit
    def outer(tree, prompts, origin):
        decoder = small.decoder()
        return decode(small.MODEL, tree, prompts, decoder, origin=origin, gen_length=small.GEN).tokens

    plain = small.decode().tokens
    np.testing.assert_array_equal(outer(small.params(), jnp.asarray(prompts), jnp.asarray(origin)), plain)


def test_temperature_may_differ_by_row():
    mixed = small.decode(temperature=jnp.asarray([0.0, 1.5, 0.0, 1.5]))
    greedy, hot = small.decode(), small.decode(temperature=1.5)
    for row in range(4):
        np.testing.assert_array_equal(mixed.tokens[row], (hot if row % 2 else greedy).tokens[row])
    assert (np.asarray(greedy.tokens) != np.asarray(hot.tokens)).any()


def by_params(tree, **parts):
    prompts, origin = small.batch()
    return decode(small.MODEL, tree, prompts, small.decoder(**parts), origin=origin, gen_length=small.GEN)


def test_near_ties_are_counted():
    tree = small.params() | {"head": jnp.zeros_like(small.params()["head"])}  # every token equally likely
    assert small.decode().near_ties.tolist() == [0] * 4
    # each step ties twice: which token, and (but for the last of a block) which position
    assert by_params(tree).near_ties.tolist() == [2 * small.GEN - small.GEN // small.BLOCK] * 4


@pytest.mark.parametrize("name", ["threshold", "margin", "entropy", "factor", "entropy_bounded"])
def test_a_comparison_that_float_rounding_decides_is_a_near_tie(name):
    """A first step's threshold is set to a score that occurs in it, and then away from it."""

    @pytree
    class Spy(PolicyBase):
        inner: Any

        def init(self, rows, window):
            return jnp.zeros((rows, window, 4))

        def select(self, state, score, key):
            doubt = jax.nn.sigmoid(-score.log_odds)
            all_of_it = jnp.stack([score.prob, score.margin, score.entropy, doubt], -1)
            state = jnp.where(score.row_step[:, None, None] == 0, all_of_it, state)
            return self.inner.select((), score, key)[0], state

    first = np.asarray(small.decode(policy=Spy(Threshold(1.0))).policy)[0]  # one row's block at its first step
    prob, margin, entropy, doubt = (first[:, i] for i in range(4))
    order = np.sort(entropy)
    number, make = {
        "threshold": (np.sort(prob)[-2], Threshold),
        "margin": (np.sort(margin)[-2], Margin),
        "entropy": (order[1], Entropy),
        "factor": (3 * np.sort(doubt)[1], Factor),
        "entropy_bounded": (order[0], EntropyBounded),
    }[name]
    assert small.decode(policy=make(float(number))).near_ties[0] > 0
    assert small.decode(policy=make(float(number) + 1e-3)).near_ties[0] == 0


def test_pad_prompts():
    padded, origin = pad_prompts([[1, 2, 3], [4]], fill=9, multiple=4)
    assert padded.tolist() == [[9, 1, 2, 3], [9, 9, 9, 4]]
    assert origin.tolist() == [1, 3]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(gen_length=12), "gen_length: found 12 with block_length 8, .*; try gen_length 16"),
        (dict(gen_length=0), "gen_length: found 0"),
        (dict(gen_length=64), "expected at most the context of 64"),
        (dict(temperature=-1.0), "temperature: found -1.0"),
        (dict(temperature=float("nan")), "temperature: found nan"),
        (dict(cfg_scale=np.ones(3)), "cfg_scale: found 3 values, expected one, or 4: one for each row"),
        (dict(top_p=1.5), "top_p: found 1.5, expected a number from 0 to 1, or a vector of them"),
        (dict(top_p=float("nan")), "top_p: found nan"),
        (dict(top_k=0), "top_k: found 0, expected a whole number from 1"),
        (dict(top_k=np.asarray(1.5)), "top_k: found 1.5"),
        (dict(policy=lambda: Threshold([0.1, 0.2])), "tau: found 2 values, expected one, or 4"),
        (dict(key=jax.random.split(jax.random.key(0), 3)), r"key: found shape \(3,\), expected \(\) or \(4,\)"),
        (dict(origin=np.array([0, 0, 6, 0])), "no row may be empty"),
        (dict(origin=np.array([0, 0])), r"origin: found shape \(2,\)"),
        (dict(reference=np.zeros((4, 22), int)), "reference: found one, but this policy does not decode towards"),
    ],
)
def test_bad_calls_are_refused_before_compilation(changes, words):
    prompts, origin = small.batch()
    options = dict(gen_length=small.GEN, origin=origin)
    options |= {name: changes[name] for name in ("gen_length", "key", "origin", "reference") if name in changes}
    parts = {name: value for name, value in changes.items() if name not in options}
    before = loop.run._cache_size()

    def call():
        made = {name: value() if callable(value) else value for name, value in parts.items()}
        decode(small.MODEL, small.params(), prompts, small.decoder(**made), **options)

    with pytest.raises(InputError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert loop.run._cache_size() == before


@pytest.mark.parametrize(
    ("prompts", "words"),
    [
        (np.array([[5, small.MASK]]), r"prompt: row 0 holds \[MASK\] \(id 3\) in column 1"),
        (np.array([[5, 61]]), "row 0: found id 61, expected 0 to 60"),
        (np.array([[-1, 5]]), "row 0: found id -1"),
        (np.zeros((1, 0), int), "found length 0"),
        (np.array([5, 6]), r"prompts: found shape \(2,\)"),
    ],
)
def test_bad_prompts_are_refused(prompts, words):
    with pytest.raises(InputError, match=words):
        decode(small.MODEL, small.params(), prompts, small.decoder(), gen_length=small.GEN)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Threshold(1.5), "tau: found 1.5, expected a number from 0 to 1"),
        (lambda: Threshold([0.5, -1.0]), "tau: found"),
        (lambda: Threshold(jnp.asarray(1.5)), "tau: found 1.5"),
        (lambda: Fixed(steps=0), "steps: found 0, expected a whole number"),
        (lambda: Fixed(steps=np.asarray(1.5)), "steps: found 1.5, expected a whole number"),
    ],
)
def test_policy_numbers_out_of_range_are_refused(make, words):
    with pytest.raises(InputError, match=words):
        make()


def test_a_broken_model_still_ends():
    """NaN everywhere: every policy must still commit, or the compiled loop would never end."""
    broken = jax.tree.map(lambda x: x * jnp.nan, small.params())
    for policy in (Fixed(), FixedDream(steps=4), Threshold(0.5), RemdmCap(steps=4), RemdmLoop(steps=4)):
        result = by_params(broken, policy=policy)
        assert (np.asarray(result.tokens)[:, -small.GEN :] != small.MASK).all()


def test_a_key_that_is_not_one_is_refused():
    with pytest.raises(InputError, match="found no typed key"):
        arrays.checked_keys(jax.random.PRNGKey(0), 2)
