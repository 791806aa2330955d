"""Temperature 0 and above: tokens, NFE and the whole trace equal a plain numpy loop, for every policy."""

import functools
import types

import jax
import numpy as np
import pytest

from jaxdiff import decode
from jaxdiff.policies import parse
from jaxdiff.stoppers import Eos, NoStop
from tests import reference, small
from tests.conformance.each_row import EachRow

CASES = {
    "fixed": reference.Fixed,
    "fixed:steps=3": lambda: reference.Fixed(3),
    "fixed:order=margin,steps=5": lambda: reference.Fixed(5, "margin"),
    "fixed:order=entropy": lambda: reference.Fixed(None, "entropy"),
    "fixed:order=random,steps=4": lambda: reference.Fixed(4, "random"),
    "fixed:schedule=dream,steps=8": lambda: reference.Dream(8),
    "threshold:tau=0.6": lambda: reference.threshold(0.6),
    "factor:f=1.2": lambda: reference.factor(1.2),
    "factor:f=1.2,rule=code": lambda: reference.factor_code(1.2),
    "margin:tau=0.5": lambda: reference.margin(0.5),
    "entropy:tau=0.9": lambda: reference.entropy(0.9),
    "entropy_bounded:gamma=1.5": lambda: reference.entropy_bounded(1.5),
    "above_mean": lambda: reference.above_mean,
    "any_of(threshold:tau=0.5 + fixed:steps=6)": lambda: reference.any_of(reference.threshold(0.5), reference.Fixed(6)),
    "all_of(threshold:tau=0.5 + entropy:tau=1.4)": lambda: reference.all_of(
        lambda seen: [i for i in np.flatnonzero(seen.masked) if seen.conf[i] >= 0.5],
        lambda seen: [i for i in np.flatnonzero(seen.masked) if seen.entropy[i] <= 1.4],
    ),
    "cap(2 + threshold:tau=0.4)": lambda: reference.cap(2, reference.threshold(0.4)),
}

STEADY = [policy for policy in CASES if not parse(policy).waits]
FIELDS = ("tokens", "commit_step", "nfe", "near_ties")


@functools.cache
def together(seed, stop=False, temperature=0.0):
    """All policies but those that wait, of whom a program asks more, in one program; and of each its rows."""
    rows, parts = len(small.PROMPTS), tuple(map(parse, STEADY))
    result = small.decode(
        policy=EachRow(parts, np.repeat(np.arange(len(parts)), rows)),
        order=np.tile(np.arange(rows), len(parts)),
        seed=seed,
        stop=Eos() if stop else NoStop(),
        model_seed=seed,
        temperature=temperature,
    )
    apart = (slice(i * rows, (i + 1) * rows) for i in range(len(parts)))
    found = {name: np.asarray(getattr(result, name)) for name in FIELDS}
    return {
        policy: types.SimpleNamespace(**{name: value[own] for name, value in found.items()})
        for policy, own in zip(STEADY, apart, strict=True)
    }


def alone(policy, seed, stop=False, temperature=0.0, cfg=None, forbid=(), defer=()):
    return small.decode(
        policy=parse(policy),
        stop=Eos() if stop else NoStop(),
        seed=seed,
        model_seed=seed,
        temperature=temperature,
        cfg_scale=cfg,
        forbid_eos=bool(forbid),
        defer_eos=bool(defer),
    )


def compare(policy, rule, *, seeds=(0, 1), **options):
    nfe = []
    for seed in seeds:
        params, keys = small.params(seed), small.keys(len(small.PROMPTS), seed)
        shared = policy in STEADY and options.keys() <= {"stop", "temperature"}
        result = together(seed, **options)[policy] if shared else alone(policy, seed, **options)
        assert int(result.near_ties.sum()) == 0, "draw another seed: float rounding decides here"
        for row, prompt in enumerate(small.PROMPTS):
            tokens, trace, calls = reference.decode(
                lambda x, params=params: small.logits(params, x),
                prompt,
                rule(),
                gen=small.GEN,
                block=small.BLOCK,
                mask=small.MASK,
                eos_ids=(small.EOS, small.EOT),
                key=keys[row],
                **options,
            )
            np.testing.assert_array_equal(np.asarray(result.tokens[row, -small.GEN :]), tokens)
            np.testing.assert_array_equal(np.asarray(result.commit_step[row]), trace)
            assert int(result.nfe[row]) == calls
            nfe.append(calls)
    return nfe


@pytest.mark.usefixtures("strict")
@pytest.mark.parametrize("stop", [False, True], ids=["none", "eos"])
@pytest.mark.parametrize("policy", CASES)
def test_every_policy_equals_numpy(policy, stop):
    nfe = compare(policy, CASES[policy], stop=stop)
    if ":tau" in policy and not stop:
        assert len(set(nfe)) > 2, "the case does not exercise the rule"


@pytest.mark.usefixtures("strict")
@pytest.mark.parametrize("policy", CASES)
def test_sampling_equals_numpy(policy):
    compare(policy, CASES[policy], seeds=(0,), temperature=0.8)


@pytest.mark.usefixtures("strict")
def test_guidance_equals_numpy_and_counts_two():
    nfe = compare("fixed", CASES["fixed"], seeds=(0,), cfg=1.5)
    assert set(nfe) == {2 * small.GEN}


@pytest.mark.usefixtures("strict")
def test_forbidden_end_of_text_is_never_predicted():
    compare("fixed", CASES["fixed"], forbid=(small.EOS,))


@pytest.mark.usefixtures("strict")
@pytest.mark.parametrize("policy", ["fixed:steps=3", "threshold:tau=0.6", "entropy_bounded:gamma=1.5"])
def test_deferred_end_of_text_goes_last(policy):
    rule = CASES[policy]
    if policy.startswith("entropy_bounded"):
        rule = lambda: lambda seen: _vouched(reference.entropy_bounded(1.5)(seen), seen)  # noqa: E731
    compare(policy, rule, defer=(small.EOS, small.EOT))


def _vouched(chosen, seen):
    """A candidate that was put off is taken only as the forced one."""
    return [i for i in chosen if seen.entropy[i] < 1e29] or chosen[:1]


def test_the_standard_decode_of_a_row_needs_one_forward_a_token():
    result = small.decode()
    assert result.nfe.tolist() == [small.GEN] * 4
    assert all(sorted(row) == list(range(small.GEN)) for row in result.commit_step.tolist())


def test_one_key_for_all_is_folded_by_row():
    prompts, origin = small.batch()
    hot = small.decoder(temperature=1.0)

    def run(key):
        return decode(small.MODEL, small.params(), prompts, hot, origin=origin, gen_length=small.GEN, key=key)

    one, each = run(jax.random.key(7)), run(small.keys(4, 7))
    np.testing.assert_array_equal(np.asarray(one.tokens), np.asarray(each.tokens))
    assert (np.asarray(one.tokens) != np.asarray(run(jax.random.key(8)).tokens)).any()
