"""Any policy with any fill that ships, and with each cache that may be exact: all policies of the table at once.

`parallel` meets each of them in `test_conformance`.
"""

import numpy as np
import pytest

from jaxdiff import Reason
from jaxdiff.caches import Dual, Frozen, NoCache, Prefix
from jaxdiff.fills import FILLS as SHIPPED
from jaxdiff.stoppers import Eos
from tests import small
from tests.conformance.each_row import PARTS, ROWS, WHICH, decode
from tests.conformance.table import FILLS

pytestmark = pytest.mark.usefixtures("strict")


@pytest.mark.parametrize("fill", [name for name in FILLS if name in SHIPPED.entries and name != "parallel"])
def test_every_policy_with_every_fill(fill):
    """Rules 1 and 2; what each pass commits and costs; and nothing hangs on the rows beside."""
    backwards = np.arange(len(ROWS))[::-1]
    result, turned = (decode(order, fill=FILLS[fill][0](), temperature=0.5) for order in (None, backwards))
    tokens, trace = np.asarray(result.tokens)[:, -small.GEN :], np.asarray(result.commit_step)
    assert ((tokens >= 0) & (tokens < small.VOCAB) & (tokens != small.MASK)).all()
    assert (np.asarray(result.reason) == Reason.FULL).all()
    assert np.isfinite(np.asarray(result.log_prob)).all()
    assert (np.asarray(result.log_prob) < 0).all()
    several = 0
    for row, number_of in enumerate(WHICH):
        part, nfe, cheap = PARTS[number_of], int(result.nfe[row]), int(result.cheap[row])
        bound = 2 * int(np.max(part.budget(1, small.BLOCK))) if part.waits or part.revises else small.GEN
        assert 0 < nfe <= bound
        full = nfe * (1 + small.BLOCK / (len(ROWS[row][0]) + small.GEN))  # one of the policies asks for a shadow
        assert full - 1e-4 <= float(result.work[row]) <= full + cheap + 1e-4
        assert (cheap == 0) == np.isclose(result.work[row], full, rtol=1e-5)
        assert (trace[row] >= 0).all()
        together = np.unique(trace[row], return_counts=True)[1]
        if not part.revises:
            assert part.waits or len(together) == nfe
            assert (together > 1).any() if cheap else fill == "head" or (together == 1).all()  # it corrects neighbours
        several += (together > 1).any()
    assert several > len(ROWS) // 2
    alike = (np.asarray(result.near_ties) + np.asarray(turned.near_ties)[::-1]) == 0
    assert alike.sum() > len(ROWS) // 2
    for field in ("tokens", "commit_step", "nfe", "cheap", "work"):
        np.testing.assert_array_equal(np.asarray(getattr(turned, field))[::-1][alike], getattr(result, field)[alike])


@pytest.mark.parametrize("cache", [Prefix(refresh=1), Dual(refresh=1), Frozen(refresh=1)])
def test_rule_8_a_cache_that_is_rebuilt_at_every_step_changes_nothing(cache):
    temperature = np.resize(np.asarray([0.0, 0.7], np.float32), len(ROWS))
    home, away = (decode(stop=Eos(), cache=each, temperature=temperature) for each in (NoCache(), cache))
    decided = np.asarray(home.near_ties) + np.asarray(away.near_ties) == 0
    assert decided.sum() > len(ROWS) // 2
    for field in ("tokens", "commit_step", "nfe", "lengths"):
        np.testing.assert_array_equal(getattr(away, field)[decided], getattr(home, field)[decided])
