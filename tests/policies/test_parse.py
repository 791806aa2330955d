"""The command line's policy names."""

import jax
import pytest

from jaxdiff import InputError
from jaxdiff.policies import (
    POLICIES,
    AllOf,
    AnyOf,
    Cap,
    Fixed,
    FixedDream,
    RemdmCap,
    RemdmLoop,
    RemdmRescale,
    Threshold,
    parse,
)


@pytest.mark.parametrize("name", [name for name in POLICIES.entries if name != "learned"])
def test_every_policy_has_a_bare_name(name):
    assert type(parse(name)) is POLICIES.class_of(name)[0]
    assert POLICIES.name_of(parse(name)) == name


def test_arguments():
    policy = parse("fixed:order=random,schedule=dream,steps=7")
    assert isinstance(policy, FixedDream)
    assert (policy.order, int(policy.steps)) == ("random", 7)
    assert type(parse("fixed:schedule=uniform,order=margin")) is Fixed
    assert float(parse("threshold:tau=0.85").tau) == pytest.approx(0.85)


def test_the_argument_of_its_own_says_which_remdm():
    assert float(parse("remdm:cap=0.02,steps=5").cap) == pytest.approx(0.02)
    assert type(parse("remdm:steps=5")) is RemdmCap
    assert type(parse("remdm:rescale=0.1")) is RemdmRescale
    loop = parse("remdm:loop,alpha=0.8", steps=6)
    assert (type(loop), float(loop.alpha), int(loop.steps)) == (RemdmLoop, pytest.approx(0.8), 6)
    assert float(parse("remdm:loop=0.3,begin=0.1").loop) == pytest.approx(0.3)


def test_a_learned_policy_is_found_by_its_name_and_threshold():
    asked = []

    def learned(name, tau):
        asked.append((name, tau))
        return Threshold(0.5)

    parse("learned", learned=learned)
    parse("cap(2 + learned:name=official,tau=0.9)", learned=learned)
    assert asked == [(None, None), ("official", 0.9)]
    with pytest.raises(InputError, match="policy learned: found no model"):
        parse("learned")
    with pytest.raises(InputError, match="policy learned: found argument 'size=2', expected name=, tau="):
        parse("learned:size=2", learned=learned)


def test_steps_come_from_the_option_unless_the_text_says_so():
    assert int(parse("fixed", steps=4).steps) == 4
    assert int(parse("fixed:steps=2", steps=4).steps) == 2
    assert int(parse("any_of(fixed + above_mean)", steps=4).parts[0].steps) == 4
    assert parse("threshold", steps=4) is not None  # has no steps to fill


def test_combinations():
    policy = parse("any_of(threshold:tau=0.9 + cap(3 + entropy:tau=0.1) + all_of(above_mean + fixed))")
    assert isinstance(policy, AnyOf)
    threshold, capped, both = policy.parts
    assert isinstance(threshold, Threshold)
    assert isinstance(capped, Cap)
    assert int(capped.k) == 3
    assert isinstance(both, AllOf)
    assert len(jax.tree.leaves(policy)) == 4  # tau, tau, k and steps are all traced


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("thresold", "found 'thresold', expected one of fixed, threshold, factor"),
        ("threshold:t=0.9", "policy threshold: found argument 't=0.9', expected tau="),
        ("threshold:tau", "found argument 'tau'"),
        ("above_mean:tau=1", "expected none"),
        ("threshold:tau=high", "policy threshold tau: found 'high', expected a number"),
        ("threshold:tau=2", "tau: found 2.0, expected a number from 0 to 1"),
        ("fixed:order=best", "fixed order: found 'best', expected one of confidence, margin, entropy, random, left"),
        ("fixed:schedule=cosine", "fixed schedule: found 'cosine'"),
        ("fixed:steps=2.5", "policy fixed steps: found '2.5', expected a whole number"),
        ("fixed:schedule=dream", "fixed schedule=dream: .* needs its number of steps"),
        ("remdm:cap=0.1,loop", "policy remdm: found cap and loop, expected one of the two"),
        ("remdm:cap=0.1,alpha=0.8", "policy remdm: found argument 'alpha=0.8', expected steps=, cap="),
        ("remdm:cap=2", "policy remdm cap: found 2.0, expected a number from 0 to 1"),
        ("any_of(fixed + remdm)", "found a part that takes commits back behind the first; put it first"),
        ("cap(threshold)", "expected cap\\(K \\+ POLICY\\)"),
        ("any_of(fixed + what)", "found 'what'"),
        ("", "found ''"),
    ],
)
def test_what_is_not_known_is_one_clear_line(text, words):
    with pytest.raises(InputError, match=words) as caught:
        parse(text)
    assert "\n" not in str(caught.value)
