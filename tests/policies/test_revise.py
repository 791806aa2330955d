"""Passes without masks at the end of a block: equal to a plain numpy loop, around any policy that commits alone."""

import numpy as np
import pytest

from jaxdiff import InputError, policies
from jaxdiff.policies import Fixed, Revise, Threshold
from jaxdiff.stoppers import Eos
from tests import reference, small

pytestmark = pytest.mark.usefixtures("strict")


def plain(tree, prompt, tau, passes, edit, sure):
    """(tokens, commit steps, NFE, overwritten) of one row under `revise(threshold)`."""
    x = np.array([*prompt, *[small.MASK] * small.GEN])
    trace, nfe, overwritten = np.full(len(x), -1), 0, 0
    for start in range(len(prompt), len(x), small.BLOCK):
        columns, doubted, looked = np.arange(start, start + small.BLOCK), False, 0
        while True:
            table = small.logits(tree, x)[columns]
            table[:, small.MASK] = -np.inf
            scores = reference.log_softmax(table)
            token, prob, masked = table.argmax(-1), np.exp(scores.max(-1)), x[columns] == small.MASK
            if masked.any():
                chosen = masked & (prob >= tau)
                if not chosen.any():
                    chosen = np.arange(small.BLOCK) == np.where(masked, prob, -np.inf).argmax()
                doubted |= bool((prob[chosen] < sure).any())
            else:
                chosen, looked = (token != x[columns]) & (prob > edit), looked + 1
                overwritten += int(chosen.sum())
            x[columns[chosen]], trace[columns[chosen]] = token[chosen], nfe
            nfe += 1
            if not masked.any() and not chosen.any():
                break
            if not (x[columns] == small.MASK).any() and (looked >= passes or not doubted):
                break
    return x[len(prompt) :], trace[len(prompt) :], nfe, overwritten


def test_it_equals_numpy():
    """Twenty drawn settings, each row its own, in one program."""
    drawn = np.random.default_rng(5)
    equal, changes, early, whole = 0, 0, 0, 0
    for seed in range(5):
        rows = len(small.PROMPTS)
        tau, edit = drawn.uniform(0.1, 0.6, rows).astype(np.float32), drawn.uniform(0.0, 0.5, rows).astype(np.float32)
        passes, sure = drawn.integers(0, 6, rows), drawn.uniform(0.1, 1.2, rows).astype(np.float32)
        result = small.decode(policy=Revise(Threshold(tau), passes, edit, sure), model_seed=seed)
        alone = small.decode(policy=Threshold(tau), model_seed=seed)
        for row, prompt in enumerate(small.PROMPTS):
            if int(result.near_ties[row]):
                continue
            numbers = (tau[row], passes[row], edit[row], sure[row])
            tokens, trace, nfe, overwritten = plain(small.params(seed), prompt, *numbers)
            np.testing.assert_array_equal(np.asarray(result.tokens[row, -small.GEN :]), tokens)
            np.testing.assert_array_equal(np.asarray(result.commit_step[row]), trace)
            assert int(result.nfe[row]) == nfe
            more = nfe - int(alone.nfe[row])
            equal, changes = equal + 1, changes + overwritten
            early, whole = early + (more < 2 * passes[row]), whole + (more == 2 * passes[row])
    assert equal >= 18
    assert changes > 15
    assert early > 3
    assert whole > 3


def test_without_passes_it_is_its_policy():
    for policy in (Threshold(0.3), policies.any_of(Threshold(0.3), Fixed())):
        alone, around = (small.decode(policy=each) for each in (policy, policies.revise(policy, passes=0)))
        for field in ("tokens", "commit_step", "nfe"):
            np.testing.assert_array_equal(getattr(around, field), getattr(alone, field))
        alone, around = (small.decode(policy=each, stop=Eos()) for each in (policy, policies.revise(policy, passes=0)))
        np.testing.assert_array_equal(around.tokens, alone.tokens)
        assert (around.nfe >= alone.nfe).all()  # a row ends when its block is full


def test_it_goes_around_a_policy_that_commits_alone():
    for text in ("remedi:steps=3", "fixed:schedule=dream,steps=3", "edit", "revise(threshold)"):
        with pytest.raises(InputError, match="policy revise: found a policy that takes commits back or waits itself"):
            policies.parse(f"revise({text}):passes=2")


def test_the_command_line_names_it():
    read = policies.parse("revise(cap(2 + threshold:tau=0.5)):passes=3,tau=0.75,sure=0.5")
    assert isinstance(read, Revise)
    assert (int(read.passes), float(read.tau), float(read.sure), float(read.policy.policy.tau)) == (3, 0.75, 0.5, 0.5)
    alone = policies.parse("revise:passes=2", steps=5)
    assert isinstance(alone.policy, Fixed)
    assert (int(alone.passes), int(alone.policy.steps)) == (2, 5)
    assert isinstance(policies.parse("any_of(revise(threshold) + fixed)").parts[0], Revise)
    for text, told in {
        "revise(threshold):width=3": "policy revise: found argument 'width=3', expected passes=, tau=, sure=",
        "revise(threshold):passes=1.5": "policy revise passes: found '1.5', expected a whole number",
        "revise(threshold):tau=2": "tau: found 2.0",
        "revise()": "policy: found ''",
        "revise(threshold": "policy: found 'revise(threshold', expected one of fixed",
        "any_of(threshold + revise(fixed))": "found a part that takes commits back behind the first",
    }.items():
        with pytest.raises(InputError) as refused:
            policies.parse(text)
        assert told in str(refused.value)
