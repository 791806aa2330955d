"""WINO: what the shadow says, and the rule, against plain numpy in float64: every forward over canvas and shadow."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import InputError
from jaxdiff.caches import Dual
from jaxdiff.decode import api, checks, loop
from jaxdiff.decode.full import FullPass
from jaxdiff.decode.state import holes
from jaxdiff.policies import Cap, Threshold, Wino, any_of
from tests import reference, small
from tests.cached import Network

pytestmark = pytest.mark.usefixtures("strict")


def test_alone_is_the_probability_without_the_token_itself():
    """On canvases with holes; one ends inside the block, and its shadow with it."""
    drawn = np.random.default_rng(1)
    canvas = drawn.integers(5, small.VOCAB, (4, small.GEN))
    canvas[drawn.random(canvas.shape) < 0.3] = small.MASK
    canvas[:, small.BLOCK] = small.MASK  # the first block is given in the last row
    canvas[3, : small.BLOCK] = 7
    call = api.prepare_infill(small.MODEL, small.params(), canvas, small.decoder(policy=Wino()))
    ends = [16, 16, 5, 14]
    state = loop.begin(call.setup, dataclasses.replace(call.rows, last=jnp.asarray(ends, jnp.int32)))

    @jax.jit
    def score(state):
        open_ = holes(small.MODEL, state)
        place = loop.next_place(call.setup.layout, state, open_)
        return FullPass(call.setup, state, place, None, open_=open_).run(open_.any(axis=1))[0]

    found = score(state)
    for row, end in enumerate(ends):
        x, start = canvas[row, :end], int(found.start[row])
        part = np.arange(start, min(start + small.BLOCK, end))
        table = Network(small.params(), small.CONFIG).forward(x, np.arange(end), shadow=part)
        table[:, small.MASK] = -np.inf
        there = x[part] != small.MASK
        beside, own = (reference.log_softmax(part) for part in (table[end:], table[part]))
        alone = beside[np.arange(len(part)), x[part]]
        np.testing.assert_allclose(np.asarray(found.alone[row])[: len(part)][there], alone[there], atol=2e-4)
        standing = own[np.arange(len(part)), x[part]]
        np.testing.assert_allclose(np.asarray(found.standing[row])[: len(part)][there], standing[there], atol=2e-4)
        assert np.abs(alone[there] - standing[there]).max() > 0.1
    assert found.start.tolist() == [0, 0, 0, small.BLOCK]


def plain(tree, prompt, tau, revoke, cap, cfg):
    """(tokens, commit steps, NFE, work, how many commits were taken back) of one row."""
    x, network = np.array([*prompt, *[small.MASK] * small.GEN]), Network(tree, small.CONFIG)
    other, trace, nfe, fed, revoked = Network(tree, small.CONFIG), np.full(len(x), -1), 0, 0, 0
    for start in range(len(prompt), len(x), small.BLOCK):
        part, step, before = np.arange(start, start + small.BLOCK), 0, 30
        while (x[part] == small.MASK).any():
            columns = part if step else np.arange(len(x))
            table = network.forward(x, columns, shadow=part)
            unseeing = other.forward(np.where(np.arange(len(x)) < len(prompt), small.MASK, x), columns, shadow=part)
            table = unseeing + (cfg + 1) * (table - unseeing)
            table[:, small.MASK] = -np.inf
            probs, scores = reference.softmax(table), reference.log_softmax(table)
            own, masked = np.searchsorted(columns, part), x[part] == small.MASK
            token = table[own].argmax(-1)
            score = np.where(masked, scores[own, token], -np.inf)
            order = np.argsort(-score, kind="stable")[: min(max(int(masked.sum() * 0.7), 5), 20)]
            commits = [i for i in order if probs[own, token][i] > tau and masked[i]] or [score.argmax()]
            alone = np.where(masked, np.inf, probs[len(columns) :][np.arange(small.BLOCK), x[part]])
            back = [i for i in np.argsort(alone, kind="stable") if alone[i] < revoke] if len(commits) > 1 else []
            back = back[: before - 1] if len(back) >= before else back
            commits = commits[:cap]
            x[part[commits]], trace[part[commits]] = token[commits], nfe
            x[part[back]], trace[part[back]] = small.MASK, -1
            fed, revoked, before = fed + len(columns) + small.BLOCK, revoked + len(back), len(commits)
            nfe, step = nfe + 1, step + 1
    return x[len(prompt) :], trace[len(prompt) :], 2 * nfe, 2 * fed / len(x), revoked


def test_it_equals_numpy():
    """Twenty drawn settings, each row its own, in one program: guided, over a cache, and capped: what is taken back is
    fewer than what was committed, not than what WINO would have.
    """
    drawn, rows, equal, revoked = np.random.default_rng(4), len(small.PROMPTS), 0, []
    for seed in range(5):
        tau, revoke, scale = drawn.uniform(0, [[0.5], [1.0], [2.0]], (3, rows)).astype(np.float32)
        most = np.array([3, small.BLOCK] * 2, np.int32)
        result = small.decode(policy=Cap(Wino(tau, revoke), most), cache=Dual(), cfg_scale=scale, model_seed=seed)
        for row in np.flatnonzero(np.asarray(result.near_ties) == 0):
            numbers = float(tau[row]), float(revoke[row]), int(most[row]), float(scale[row])
            tokens, trace, nfe, work, back = plain(small.params(seed), small.PROMPTS[row], *numbers)
            np.testing.assert_array_equal(np.asarray(result.tokens[row, -small.GEN :]), tokens)
            np.testing.assert_array_equal(np.asarray(result.commit_step[row]), trace)
            assert int(result.nfe[row]) == nfe <= 2 * small.GEN
            np.testing.assert_allclose(result.work[row], work, rtol=1e-5)
            equal, revoked = equal + 1, [*revoked, back]
    assert equal >= 18
    assert sum(back > 0 for back in revoked) > 5, "nothing is taken back"


@pytest.mark.parametrize("model", [small.DREAM, small.FAST])
def test_shifted_models_are_refused(model):
    """In a combination too."""
    decoder = small.decoder(policy=any_of(Wino(), Threshold(0.9)))
    with pytest.raises(InputError, match="with a model whose logits are shifted by one, expected one that reads"):
        checks.check_decoder(decoder, model, None, None)
