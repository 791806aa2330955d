"""A stream that is fed while it runs: what is told of an answer on its way, and requests that are given up."""

import collections

import numpy as np
import pytest

from jaxdiff import Request, policies
from tests.serve.test_stream import METER, POLICY, PROMPTS, alone, assert_same, stream

pytestmark = pytest.mark.usefixtures("strict")


@pytest.mark.parametrize("policy", [POLICY, policies.RemdmCap(5, 0.4)], ids=["commits", "takes back"])
def test_what_is_told_as_settled_does_not_change(policy):
    told = collections.defaultdict(list)
    queue = [Request(ids, watch=lambda partial: told[partial.request.number].append(partial)) for ids in PROMPTS[:5]]
    answers, _ = stream(queue, slots=2, most=1, policy=policy, temperature=0.7)
    changed = ahead = 0
    for number, answer in answers.items():
        assert [partial.nfe for partial in told[number]] == list(range(1, answer.nfe))
        settled = [partial.settled for partial in told[number]]
        assert settled == sorted(settled)
        ahead += sum(count > 0 for count in settled)
        for partial in told[number]:
            np.testing.assert_array_equal(partial.tokens[: partial.settled], answer.tokens[: partial.settled])
            written = (partial.commit_step >= 0) & (answer.commit_step >= 0)
            changed += int((partial.tokens != answer.tokens)[written].sum())
    assert ahead
    assert (changed > 0) is policy.revises


def test_requests_that_are_given_up_make_room_and_a_queue_may_have_nothing_for_a_while():
    seen, meter = [], METER.beside()

    def queue():
        yield Request(PROMPTS[0], number=0, wanted=lambda: False)
        yield Request(PROMPTS[3], number=3, watch=seen.append, wanted=lambda: not seen)
        yield None
        assert len(seen) == 1  # a serve step was done
        yield Request(PROMPTS[4], number=4)
        yield None
        yield None
        yield Request(PROMPTS[7], number=7)

    answers, refusals = stream(queue(), slots=2, most=1, meter=meter)
    assert [row.number for row in refusals] == [0, 3]
    assert all("no longer wanted" in row.error for row in refusals)
    assert meter.slot_steps == 2 * meter.steps  # two slots from the beginning, whatever was there
    assert sorted(answers) == [4, 7]
    for number, answer in answers.items():
        assert_same(answer, alone(number, 0.0))
    assert meter.busy == sum(answer.nfe for answer in answers.values()) + 1
