"""Taking back what a judge doubts: equal to a plain numpy loop; each position once; a judge serves its own model."""

import dataclasses

import numpy as np
import pytest

from jaxdiff import InputError, policies
from jaxdiff.leaves import fingerprint
from jaxdiff.policies.judge import Correct
from tests import reference, small
from tests.conformance.table import random_judge

pytestmark = pytest.mark.usefixtures("strict")
CERTAIN, REACH = 20.0, 1


def said(judge, block, step):
    """Its logits: `block` is a list, for each position, of (odds, standing, log_prob, agrees, masked, judged, age,
    repeats).
    """
    none = (0.0,) * 8
    share = np.mean([seen[4] for seen in block])
    rows = []
    for at in range(len(block)):
        inputs = []
        for near in range(at - REACH, at + REACH + 1):
            odds, standing, log_prob, agrees, masked, judged, *_ = block[near] if 0 <= near < len(block) else none
            numbers = [np.clip(x, -CERTAIN, CERTAIN) / 8 for x in (odds, standing, log_prob)]
            inputs += [*numbers, agrees, masked, judged, float(0 <= near < len(block))]
        rows.append([*inputs, np.log1p(max(block[at][6], 0)), share, np.log1p(step), block[at][7]])
    x = np.asarray(rows)
    for index, layer in enumerate(judge.layers):
        x = x @ np.asarray(layer.kernel, np.float64) + np.asarray(layer.bias, np.float64)
        x = np.maximum(x, 0) if index + 1 < len(judge.layers) else x
    return x[:, 0]


def plain(tree, prompt, judge, tau, doubt, sure):
    """(tokens, commit steps, NFE, taken back, held) of one row under `correct(threshold + judge)`."""
    x = np.array([*prompt, *[small.MASK] * small.GEN])
    trace, nfe, back, held = np.full(len(x), -1), 0, 0, 0
    for start in range(len(prompt), len(x), small.BLOCK):
        columns = np.arange(start, start + small.BLOCK)
        odds, since, taken = np.zeros(small.BLOCK), np.zeros(small.BLOCK, int), np.zeros(small.BLOCK, bool)
        step, hold = 0, True
        while hold:
            table = small.logits(tree, x)[columns]
            table[:, small.MASK] = -np.inf
            scores = reference.log_softmax(table)
            token, masked = table.argmax(-1), x[columns] == small.MASK
            best = scores.max(-1)
            rest = np.where(np.arange(table.shape[1]) == token[:, None], -np.inf, scores)
            now = best - np.log(np.exp(rest).sum(-1))
            odds, since = np.where(masked, now, odds), np.where(masked, step, since)
            standing = np.where(masked, -1e30, scores[np.arange(small.BLOCK), x[columns]])
            own, age = x[columns], step - since
            repeats = [
                not masked[i] and any(own[j] == own[i] and (-age[j], j) < (-age[i], i) for j in np.flatnonzero(~masked))
                for i in range(small.BLOCK)
            ]
            seen = list(zip(odds, standing, best, token == own, masked, ~masked, age, repeats, strict=True))
            wrong = said(judge, seen, step) > np.log(doubt / (1 - doubt))
            remask = wrong & ~masked & ~taken
            commit = masked & (np.exp(best) >= tau)
            if masked.any() and not commit.any():
                commit = np.arange(small.BLOCK) == np.where(masked, now, -np.inf).argmax()
            hold = not (masked & ~commit).any() and bool((commit & (np.exp(best) < sure)).any())
            held += hold
            taken |= remask
            x[columns] = np.where(commit, token, np.where(remask, small.MASK, x[columns]))
            trace[columns] = np.where(commit, nfe, np.where(remask, -1, trace[columns]))
            step, nfe, back = step + 1, nfe + 1, back + int(remask.sum())
            hold |= bool((x[columns] == small.MASK).any())
    return x[len(prompt) :], trace[len(prompt) :], nfe, back, held


def test_it_equals_numpy():
    """Twenty drawn settings, each row its own, in one program."""
    drawn, judge = np.random.default_rng(5), random_judge()
    equal, backs, holds, kept = 0, 0, 0, 0
    for seed in range(5):
        tau, doubt, sure = drawn.uniform(0.2, 0.9, (3, len(small.PROMPTS))).astype(np.float32)
        result = small.decode(policy=Correct(policies.Threshold(tau), judge, doubt, sure), model_seed=seed)
        for row, prompt in enumerate(small.PROMPTS):
            if int(result.near_ties[row]):
                continue
            tokens, trace, nfe, back, held = plain(small.params(seed), prompt, judge, tau[row], doubt[row], sure[row])
            np.testing.assert_array_equal(np.asarray(result.tokens[row, -small.GEN :]), tokens)
            np.testing.assert_array_equal(np.asarray(result.commit_step[row]), trace)
            assert int(result.nfe[row]) == nfe
            equal, backs, holds, kept = equal + 1, backs + back, holds + held, kept + (back == 0)
    assert equal >= 18
    assert backs > 15
    assert holds > 5
    assert kept < equal


def test_a_judge_serves_its_own_model():
    judge = random_judge()
    with pytest.raises(InputError, match="reads 5 hidden features, but this model has 32"):
        small.decode(policy=Correct(policies.Threshold(0.5), dataclasses.replace(judge, features=5)))
    other = small.params() | {"ln_f": {"weight": 2.0 * small.params()["ln_f"]["weight"]}}
    own = dataclasses.replace(judge, fitted_to=fingerprint(other))
    own.check(small.MODEL, other)
    with pytest.raises(InputError, match=r"judge: found one of the weights \w{16}, but these are \w{16}"):
        small.decode(policy=policies.any_of(Correct(policies.Threshold(0.5), own), policies.Fixed()))


def test_it_does_not_wait_for_commits_that_another_policy_refuses():
    """One position a forward is forced; a block is not held with its last mask."""
    held = Correct(policies.Threshold(0.0), random_judge(), 1.0, 2.0)
    result = small.decode(policy=policies.all_of(held, policies.Threshold(1.0)))
    np.testing.assert_array_equal(result.nfe, small.GEN)


def test_a_policy_that_takes_back_is_not_corrected():
    for policy in (policies.POLICIES.parse("remedi:steps=3"), policies.parse("fixed:schedule=dream,steps=3")):
        with pytest.raises(InputError, match="policy correct: found a policy that takes commits back or waits itself"):
            Correct(policy, random_judge())


def test_the_command_line_names_it():
    judge = random_judge()

    def named(name):
        assert name in (None, "mine")
        return judge, 0.25

    read = policies.parse("correct(cap(2 + threshold:tau=0.5) + judge:name=mine,sure=0.5)", judge=named)
    assert isinstance(read, Correct)
    assert (float(read.tau), float(read.sure), float(read.policy.policy.tau)) == (0.25, 0.5, 0.5)
    assert float(policies.parse("correct(above_mean + judge:tau=0.75)", judge=named).tau) == 0.75
    for text, told in {
        "correct(threshold)": "expected correct(POLICY + judge:name=NAME,tau=TAU)",
        "correct(threshold + fixed)": "found 'fixed' behind the policy",
        "correct(threshold + judge:width=3)": "width",
        "correct(threshold + judge:tau=2)": "tau: found 2.0",
    }.items():
        with pytest.raises(InputError) as refused:
            policies.parse(text, judge=named)
        assert told in str(refused.value)
    with pytest.raises(InputError, match="policy correct: found no model"):
        policies.parse("correct(threshold + judge)")
