"""The command line's policy names."""

import jax
import pytest

from jaxdiff import InputError
from jaxdiff.policies import POLICIES, AllOf, AnyOf, Cap, Fixed, Threshold, parse


@pytest.mark.parametrize("name", [name for name in POLICIES if name != "learned"])
def test_every_policy_has_a_bare_name(name):
    assert type(parse(name)) is POLICIES[name]


def test_arguments():
    policy = parse("fixed:order=random,schedule=dream,steps=7")
    assert isinstance(policy, Fixed)
    assert (policy.order, policy.schedule, int(policy.steps)) == ("random", "dream", 7)
    assert float(parse("threshold:tau=0.85").tau) == pytest.approx(0.85)


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
    with pytest.raises(InputError, match="policy learned: found argument 'size=2', expected tau=, name="):
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
        ("fixed:order=best", "fixed order: found 'best', expected one of confidence, margin, entropy, random"),
        ("fixed:schedule=cosine", "fixed schedule: found 'cosine'"),
        ("fixed:steps=2.5", "policy fixed steps: found '2.5', expected a whole number"),
        ("fixed:schedule=dream", "fixed schedule=dream: .* needs its number of steps"),
        ("cap(threshold)", "expected cap\\(K \\+ POLICY\\)"),
        ("any_of(fixed + what)", "found 'what'"),
        ("", "found ''"),
    ],
)
def test_what_is_not_known_is_one_clear_line(text, words):
    with pytest.raises(InputError, match=words) as caught:
        parse(text)
    assert "\n" not in str(caught.value)
