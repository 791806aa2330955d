"""ReMDM against a plain loop written from the paper's rates, with the same uniform draws."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdiff.policies import RemdmCap, RemdmLoop, RemdmRescale
from tests import reference, small

pytestmark = pytest.mark.usefixtures("strict")
STEPS, SHARE = st.integers(1, 12), st.floats(0, 1, width=32)
SETTINGS = st.fixed_dictionaries(
    {"steps": STEPS, "seed": st.integers(0, 3), "temperature": st.sampled_from([0.0, 0.8])}
)


def cap(value):
    """a_t, a_s and sigma of step i of n, alpha = 1 - t."""

    def rates(i, n):
        now, after = i / n, (i + 1) / n
        return now, after, min(value, most(now, after))

    return rates


def rescale(value):
    def rates(i, n):
        now, after = i / n, (i + 1) / n
        return now, after, value * most(now, after)

    return rates


def loop(sigma, alpha, begin, end):
    """MDLM until `alpha` is visible, `sigma` at that share, MDLM to the end; both without remasking."""

    def share(done):
        if done <= begin:
            return alpha * done / begin
        return alpha if done <= end else alpha + (1 - alpha) * (done - end) / (1 - end)

    def rates(i, n):
        now, after = i / n, (i + 1) / n
        inside = begin <= now and after <= end
        return share(now), share(after), min(sigma, most(share(now), share(after))) if inside else 0.0

    return rates


def most(now, after):
    return 1.0 if now == 0 else min(1.0, (1 - after) / now)


def plain(tree, prompt, rates, steps, key, temperature):
    """(tokens, commit steps, log-probs, NFE, remasks) of one row."""
    x = np.array([*prompt, *[small.MASK] * small.GEN])
    trace, written = np.full(len(x), -1), np.zeros(len(x))
    nfe = remasks = 0
    for start in range(len(prompt), len(x), small.BLOCK):
        for i in range(steps):
            now, after, sigma = rates(i, steps)
            table = small.logits(tree, x)
            table[:, small.MASK] = -np.inf
            step_key = jax.random.fold_in(key, nfe)
            noise = temperature * reference.gumbel(step_key, 0, *table.shape) if temperature else 0.0
            candidate, scores = (table + noise).argmax(-1), reference.log_softmax(table)
            commits = 1.0 if i + 1 == steps else (after - (1 - sigma) * now) / max(1 - now, 1e-9)
            draw = reference.uniform(step_key, len(x))
            for at in range(start, start + small.BLOCK):
                if x[at] == small.MASK and draw[at] < commits:
                    x[at], trace[at], written[at] = candidate[at], nfe, scores[at, candidate[at]]
                elif x[at] != small.MASK and draw[at] < sigma:
                    x[at], trace[at], written[at], remasks = small.MASK, -1, 0.0, remasks + 1
            nfe += 1
    answer = slice(len(prompt), None)
    return x[answer], trace[answer], written[answer], nfe, remasks


def compare(policy, rates, *, steps, seed, temperature):
    result = small.decode(policy=policy, seed=seed, model_seed=seed, temperature=temperature)
    remasks = 0
    for row, prompt in enumerate(small.PROMPTS):
        key = small.keys(4, seed)[row]
        tokens, trace, written, nfe, taken_back = plain(small.params(seed), prompt, rates, steps, key, temperature)
        assert int(result.nfe[row]) == float(result.work[row]) == nfe == steps * small.GEN // small.BLOCK
        if int(result.near_ties[row]):
            continue
        np.testing.assert_array_equal(np.asarray(result.tokens[row, -small.GEN :]), tokens)
        np.testing.assert_array_equal(np.asarray(result.commit_step[row]), trace)
        np.testing.assert_allclose(result.log_prob[row], written, atol=1e-3)
        remasks += taken_back
    assert np.asarray(result.near_ties).min() == 0
    return remasks


@settings(max_examples=8)
@given(value=SHARE, drawn=SETTINGS)
def test_cap(value, drawn):
    compare(RemdmCap(drawn["steps"], value), cap(value), **drawn)


@settings(max_examples=6)
@given(value=SHARE, drawn=SETTINGS)
def test_rescale(value, drawn):
    compare(RemdmRescale(drawn["steps"], value), rescale(value), **drawn)


@settings(max_examples=8)
@given(
    value=SHARE,
    alpha=st.floats(0.25, 1, width=32),
    ends=st.tuples(st.floats(0.125, 0.5, width=32), st.floats(0.5, 0.875, width=32)),
    drawn=SETTINGS,
)
def test_loop(value, alpha, ends, drawn):
    compare(RemdmLoop(drawn["steps"], value, alpha, *ends), loop(value, alpha, *ends), **drawn)


def test_the_published_numbers_take_commits_back():
    fixed = dict(steps=12, seed=0, temperature=0.8)
    assert compare(RemdmLoop(12, 0.02), loop(0.02, 0.9, 0.45, 0.95), **fixed) >= 0
    assert compare(RemdmCap(12, 0.4), cap(0.4), **fixed) > 10
    assert compare(RemdmRescale(12, 0.5), rescale(0.5), **fixed) > 10


def test_without_remasking_the_three_are_one_schedule():
    kinds = (RemdmCap(7, 0.0), RemdmRescale(7, 0.0), RemdmLoop(7, 0.0, 1.0, 1.0, 1.0))
    first, *others = (small.decode(policy=kind) for kind in kinds)
    for other in others:
        np.testing.assert_array_equal(first.tokens, other.tokens)
        np.testing.assert_array_equal(first.commit_step, other.commit_step)
