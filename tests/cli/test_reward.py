"""`jaxdiff fit --reward` from end to end on a tiny model."""

import contextlib
import shutil
import threading

import jax
import numpy as np
import pytest

from jaxdiff.filters import FILTERS, learned_policy, save_filter
from jaxdiff.policies import Learned
from jaxdiff.policies.filters import LocalFilter, init_layers, local_width

LENGTHS = ("--gen-length", 16, "--block-length", 8)


@pytest.fixture
def home(folder, tmp_path):
    home = shutil.copytree(folder, tmp_path / "model")
    judge = LocalFilter(init_layers(jax.random.key(3), (local_width(1, 32), 8, 1)), reach=1, features=32)
    save_filter(home / FILTERS / "local", Learned(judge, 0.5), quota=False)
    return home


def test_a_filter_learns_from_what_its_decodes_are_worth(home, run, parity):
    """Half of the problems are right whatever is said, so that fewer forwards are all there is to win."""
    fitting = ("fit", "--reward", 0.1, "--model", home, "--task", "parity", *LENGTHS, "--seed", 5, "--json")
    sizes = (
        "--rounds",
        3,
        "--every",
        3,
        "--problems",
        4,
        "--group",
        4,
        "--batch-size",
        8,
        "--validation",
        8,
        "--reach",
        2,
    )
    ran = run(*fitting, "--name", "quick", *sizes, "--learning-rate", 0.05, "--temperature", 1)
    assert ran.code == 0, ran.err
    numbers, curve = ran.json, ran.json["curve"]
    assert (numbers["from"], numbers["decodes"], numbers["recipe"]["price"], numbers["recipe"]["seed"]) == (
        "local",
        48,
        0.1,
        5,
    )
    assert len(numbers["rounds"]) == 3
    assert all(each["rate"] > 0 for each in numbers["rounds"])  # decodes a second
    assert [look["round"] for look in curve] == [0, 3]
    assert all(look["reward"] == pytest.approx(look["accuracy"] - 0.1 * look["nfe"]) for look in curve)
    assert numbers["best"]["nfe"] < 0.7 * curve[0]["nfe"]
    assert "parity" in (home / FILTERS / "quick" / "README.md").read_text()
    assert "round 3: 50.0% right" in ran.err

    ran = run(*fitting, "--name", "again", *sizes, "--learning-rate", 0.05, "--temperature", 1)
    assert ran.json["curve"] == curve
    first, second = (learned_policy(home, name) for name in ("quick", "again"))
    for one, two in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(one, two)
    assert (float(first.tau), first.filter.reach) == (0.5, 2)


def test_a_signal_ends_it_with_the_best_so_far(home, run, parity, monkeypatch):
    """After the round under way."""
    asked = threading.Event()
    asked.set()
    monkeypatch.setattr("jaxdiff.train.fit_reward.until_sigterm", lambda: contextlib.nullcontext(asked))
    fitting = ("fit", "--reward", 0.1, "--name", "short", "--model", home, "--task", "parity", *LENGTHS, "--reach", 2)
    ran = run(*fitting, "--rounds", 3, "--problems", 4, "--group", 4, "--batch-size", 8, "--validation", 8, "--json")
    assert (ran.code, ran.json["stopped"], ran.json["decodes"]) == (0, True, 16)
    assert [look["round"] for look in ran.json["curve"]] == [0, 1]
    assert learned_policy(home, "short").filter.reach == 2


def test_what_cannot_be_fitted_to_rewards_is_refused(home, refused, ids_folder):
    own = ("fit", "--model", home, "--name", "mine")
    fitting = (*own, "--reward", 0.1)
    for line, found in (
        ((*own, "--reward", -0.1), "--reward"),
        ((*own, "--reward", "nan"), "--reward"),
        ((*own, "--reward", "inf"), "price: found inf, expected a number of 0 or more"),
        ((*fitting, "--group", 1), "--group"),
        ((*fitting, "--temperature", 0), "temperature: found 0.0, expected a number above 0"),
        ((*fitting, "--from", "yours"), "policy learned: found name 'yours', but"),
        ((*fitting[:-3], "local", "--reward", 0.1), "name: found local, which is what --from names too"),
        ((*fitting, "--reach", 0), "reach: found 0, but the filter sees 1 neighbours on each side already"),
        ((*fitting, "--tau", 1), "tau: found 1.0, expected a number between 0 and 1"),
        ((*fitting, "--task", "chess"), "task: found 'chess', expected one of"),
        ((*fitting, "--task", "drills", *LENGTHS), "split: found 'validation', but all drills are for training"),
        ((*fitting, "--gen-length", 95, "--task", "permutation"), "95"),
        ((*fitting, "--kind", "local"), "kind: found it beside --reward, which takes no such option"),
        ((*fitting, "--traces", home), "traces: found it beside --reward"),
        ((*own, "--rounds", 3, "--traces", home), "rounds: found it beside no --reward"),
        (own, "traces: found none, expected a folder that `jaxdiff collect` wrote; or give --reward"),
        ((*own, "--kind", "confidence", "--reach", 2), "traces: found none"),
        (("fit", "--model", ids_folder, "--name", "mine", "--reward", 0.1), "policy learned: found name 'local'"),
    ):
        assert found in refused(*line), line
