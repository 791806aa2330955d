"""Both published rules of `factor` against a plain loop, over drawn confidences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.policies import parse
from jaxdiff.types import Score
from tests import reference

ROWS, WIDTH = 200, 8
RULES = {"paper": reference.factor, "code": reference.factor_code}


class Seen:
    def __init__(self, conf, masked):
        self.conf, self.masked = conf, masked


def drawn():
    """Confidences from sure to unsure, and rows with 1 to WIDTH masks."""
    rng = np.random.default_rng(0)
    conf = 1.0 - rng.uniform(size=(ROWS, WIDTH)) ** rng.integers(1, 6, (ROWS, 1))
    masked = np.argsort(rng.uniform(size=(ROWS, WIDTH)), axis=1) < rng.integers(1, WIDTH + 1, (ROWS, 1))
    return np.clip(conf, 0.01, 0.999), masked


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("f", [0.3, 1.0, 2.5])
def test_it_is_the_published_loop(rule, f):
    conf, masked = drawn()
    wide, zero = jnp.asarray(conf, jnp.float32), jnp.zeros(ROWS, jnp.int32)
    none = jnp.zeros_like(wide)
    score = Score(
        token=none.astype(jnp.int32),
        prob=wide,
        log_odds=jnp.log(wide) - jnp.log1p(-wide),
        **dict.fromkeys(("runner_up", "entropy", "gap", "log_prob"), none),
        **dict.fromkeys(("named", "hidden"), none[..., None]),
        **dict.fromkeys(("masked", "eligible"), jnp.asarray(masked)),
        editable=jnp.asarray(~masked),
        canvas=none.astype(jnp.int32),
        **dict.fromkeys(("start", "origin", "block_step", "row_step"), zero),
    )
    policy = parse(f"factor:f={f},rule={rule}")
    proposal, _ = policy.select((), score, jax.random.split(jax.random.key(0), ROWS))
    commit = np.array(proposal.commit)
    surest = np.argmax(np.where(masked, conf, -1.0), axis=1)
    commit[np.arange(ROWS)[~commit.any(1)], surest[~commit.any(1)]] = True  # what the loop forces
    expected = np.zeros_like(masked)
    for row in range(ROWS):
        expected[row, RULES[rule](f)(Seen(conf[row], masked[row]))] = True
    np.testing.assert_array_equal(commit, expected)


def test_they_differ_in_the_last_mask_alone():
    conf, masked = np.asarray([0.99, 0.98, 0.1]), np.ones(3, bool)
    assert len(reference.factor(1.0)(Seen(conf, masked))) == 2
    assert len(reference.factor_code(1.0)(Seen(conf, masked))) == 3
    assert len(reference.factor_code(1.0)(Seen(conf[1:], masked[1:]))) == 2  # of two, both
