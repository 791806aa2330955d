"""Fitting a filter: it learns what the traces hold, keeps prompts apart, and comes back from disk as a policy."""

import dataclasses
import json

import numpy as np
import pytest

import jaxdiff
from jaxdiff import InputError
from jaxdiff.filters import BEST_FILTER, FILTERS, learned_policy, load_filter, save_filter
from jaxdiff.policies import AnyOf, Learned
from jaxdiff.policies.filters import BlockFilter, LocalFilter
from jaxdiff.train.fit_filter import FilterRecipe, fit_filter
from jaxdiff.train.traces import Traces
from tests import small

WINDOW, FEATURES = 8, 4


def made_up(prompts=60, seed=0, told=False, window=WINDOW):
    """A position is final where it and its left neighbour are confident: no threshold on its own score can tell.

    `told`: where its hidden features say so, and nothing else does.
    """
    rng = np.random.default_rng(seed)
    rows = 20 * prompts
    log_odds = rng.normal(1, 3, (rows, window)).astype(np.float32)
    left = np.concatenate([np.full((rows, 1), 9.0), log_odds[:, :-1]], axis=1)
    hidden = rng.normal(0, 1, (rows, window, FEATURES)).astype(np.float16)
    return Traces(
        log_odds=log_odds,
        runner_up=np.full((rows, window), 0.1, np.float32),
        entropy=np.full((rows, window), 0.5, np.float32),
        masked=np.ones((rows, window), bool),
        final=hidden[..., 1] + hidden[..., 2] > 0 if told else (log_odds > 0) & (left > 0),
        hidden=hidden,
        step=np.zeros(rows, np.int64),
        block=np.zeros(rows, np.int64),
        prompt=np.repeat(np.arange(prompts), 20),
        tau=np.zeros(rows, np.float32),
    )


@pytest.mark.parametrize(("kind", "made"), [("block", BlockFilter), ("local", LocalFilter)])
def test_a_fit_learns_from_the_neighbours(kind, made):
    fitted = fit_filter(made_up(), FilterRecipe(kind=kind, hidden=16, steps=300, learning_rate=0.02))
    assert isinstance(fitted.filter, made)
    assert fitted.best == min(fitted.losses) < 0.5 * fitted.losses[0] or fitted.best < 0.15
    fresh = made_up(seed=1)
    right = (np.asarray(fitted.filter(fresh.evidence)) > 0) == fresh.final
    own_score = (fresh.log_odds > 0) == fresh.final
    assert right.mean() > 0.93 > own_score.mean()


def test_a_local_filter_learns_from_masked_positions_of_several_block_lengths():
    """What visible positions say is false in these traces, and is not looked at."""
    rng = np.random.default_rng(0)
    parts = [made_up(prompts=30, window=4), made_up(prompts=30, window=16)]
    for index, part in enumerate(parts):
        masked = rng.random(part.masked.shape) < 0.5
        parts[index] = dataclasses.replace(part, masked=masked, final=np.where(masked, part.final, ~part.final))
    fitted = fit_filter(parts, FilterRecipe(kind="local", hidden=16, steps=300, positions=4096, learning_rate=0.02))
    assert (fitted.rows, fitted.prompts) == (1080, 30)
    for part in parts:
        fresh = made_up(seed=1, window=part.masked.shape[1])
        judged = np.asarray(fitted.filter(fresh.evidence)) > 0
        assert (judged == fresh.final).mean() > 0.93
    with pytest.raises(InputError, match=r"found blocks of \[4, 16\], but a filter of kind block judges one length"):
        fit_filter(parts, FilterRecipe())


def test_hidden_features_may_tell_what_the_score_does_not():
    fitted = fit_filter(made_up(told=True), FilterRecipe(kind="hidden", hidden=16, steps=250, learning_rate=0.02))
    fresh = made_up(seed=1, told=True)
    assert ((np.asarray(fitted.filter(fresh.evidence)) > 0) == fresh.final).mean() > 0.95
    with pytest.raises(InputError, match="found hidden features of width 3, but this filter reads 4"):
        fitted.filter(dataclasses.replace(fresh, hidden=fresh.hidden[..., :3]).evidence)
    with pytest.raises(InputError, match="hold no hidden features"):
        fit_filter(dataclasses.replace(fresh, hidden=fresh.hidden[..., :0]), FilterRecipe(kind="hidden"))


def test_a_wrong_commit_may_cost_more_than_a_wait():
    careful, even = (
        fit_filter(made_up(), FilterRecipe(kind="local", hidden=4, steps=300, wrong=wrong)).filter
        for wrong in (8.0, 1.0)
    )
    fresh = made_up(seed=1)
    wrong = [((np.asarray(judge(fresh.evidence)) > 0) & ~fresh.final).mean() for judge in (careful, even)]
    assert wrong[0] < 0.5 * wrong[1]


def test_what_cannot_be_fitted_is_refused():
    with pytest.raises(InputError, match="found 1 prompts, too few to keep a tenth apart"):
        fit_filter(made_up(prompts=1), FilterRecipe())
    with pytest.raises(InputError, match="filter kind: found 'wide', expected block, local, hidden or confidence"):
        FilterRecipe(kind="wide")
    with pytest.raises(InputError, match="filter layers: found 0"):
        FilterRecipe(layers=0)


@pytest.mark.parametrize("kind", ["block", "local", "hidden", "confidence"])
def test_a_filter_comes_back_from_disk_as_a_policy(tmp_path, kind):
    jaxdiff.save(tmp_path / "tiny", small.MODEL, small.params())
    fitted = fit_filter(made_up(), FilterRecipe(kind=kind, hidden=8, steps=10, reach=2))
    for name, quota in (("joined", True), (BEST_FILTER, False)):
        save_filter(tmp_path / "tiny" / FILTERS / name, Learned(fitted.filter, 0.7), quota=quota)
    best, joined = learned_policy(tmp_path / "tiny"), learned_policy(tmp_path / "tiny", "joined", tau=0.2)
    assert isinstance(best, Learned)
    assert isinstance(joined, AnyOf)
    assert (float(best.tau), float(joined.parts[0].tau)) == pytest.approx((0.7, 0.2))
    seen = made_up(seed=2).evidence
    np.testing.assert_array_equal(best.filter(seen), fitted.filter(seen))


def test_a_filter_that_is_missing_or_damaged_is_one_clear_line(tmp_path):
    jaxdiff.save(tmp_path / "tiny", small.MODEL, small.params())
    with pytest.raises(InputError, match=r"policy learned: found name 'local', but .* holds none"):
        learned_policy(tmp_path / "tiny")
    home = tmp_path / "tiny" / FILTERS / "mine"
    save_filter(home, Learned(fit_filter(made_up(), FilterRecipe(steps=5)).filter), quota=True)
    with pytest.raises(InputError, match=r"found name 'yours', but .* holds mine; name one"):
        learned_policy(tmp_path / "tiny", "yours")
    config = json.loads((home / "filter.json").read_text())
    (home / "filter.json").write_text(json.dumps(config | {"widths": [9, 9]}))
    with pytest.raises(InputError, match="params: cannot be read"):
        load_filter(home)
    (home / "filter.json").write_text("{}")
    with pytest.raises(InputError, match=r"filter.json: missing or damaged"):
        load_filter(home)
