"""RemeDi's rule: equal to a plain numpy loop that ranks all of a block's positions in each step."""

import numpy as np
import pytest

from jaxdiff.policies import Remedi
from tests import reference, small

pytestmark = pytest.mark.usefixtures("strict")


def plain(tree, prompt, steps):
    """(tokens, commit steps, NFE, remasks) of one row."""
    x = np.array([*prompt, *[small.MASK] * small.GEN])
    trace, nfe, remasks = np.full(len(x), -1), 0, 0
    for start in range(len(prompt), len(x), small.BLOCK):
        columns = np.arange(start, start + small.BLOCK)
        for i in range(steps):
            table = small.logits(tree, x)
            table[:, small.MASK] = -np.inf
            scores, masked = reference.log_softmax(table), x[columns] == small.MASK
            token = np.where(masked, table.argmax(-1)[columns], x[columns])
            kept = np.argsort(-scores[columns, token], kind="stable")[: -(-(i + 1) * small.BLOCK // steps)]
            keep = np.isin(np.arange(small.BLOCK), kept)
            remasks += np.sum(~keep & ~masked)
            trace[columns] = np.where(keep, np.where(masked, nfe, trace[columns]), -1)
            x[columns] = np.where(keep, token, small.MASK)
            nfe += 1
    return x[len(prompt) :], trace[len(prompt) :], nfe, remasks


def test_it_equals_numpy():
    """Twenty drawn settings, each row its own, in one program."""
    drawn, equal, remasked = np.random.default_rng(3), 0, 0
    for seed in range(5):
        steps = drawn.integers(1, 13, len(small.PROMPTS)).astype(np.int32)
        result = small.decode(policy=Remedi(steps), model_seed=seed)
        for row, prompt in enumerate(small.PROMPTS):
            tokens, trace, nfe, remasks = plain(small.params(seed), prompt, int(steps[row]))
            assert int(result.nfe[row]) == nfe == steps[row] * small.GEN // small.BLOCK
            if int(result.near_ties[row]):
                continue
            np.testing.assert_array_equal(np.asarray(result.tokens[row, -small.GEN :]), tokens)
            np.testing.assert_array_equal(np.asarray(result.commit_step[row]), trace)
            equal, remasked = equal + 1, remasked + remasks
    assert equal >= 18
    assert remasked > 20
