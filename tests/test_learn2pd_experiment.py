"""The Learn2PD experiment's own arithmetic: what is kept, what is chosen. The decodes have their tests elsewhere."""

import json

import pytest

import jaxdiff
from experiments.learn2pd import common
from tests import small


@pytest.fixture
def checkpoint(monkeypatch, tmp_path):
    monkeypatch.setattr(common, "RESULTS", tmp_path / "results")
    return jaxdiff.Checkpoint(small.MODEL, small.params(), None, tmp_path)


def test_an_entry_is_measured_once_and_kept_through_a_kill(checkpoint):
    made = []
    for value in (1, 2):
        results = common.Results("numbers", checkpoint)
        assert results.once("first", lambda value=value: made.append(value) or value) == 1
    assert made == [1]
    assert json.loads(results.path.read_text())["entries"] == {"first": 1}


def test_other_weights_are_measured_anew(checkpoint):
    common.Results("numbers", checkpoint).once("first", lambda: 1)
    other = jaxdiff.Checkpoint(small.MODEL, small.params(seed=1), None, checkpoint.path)
    assert common.Results("numbers", other).once("first", lambda: 2) == 2


def test_the_fastest_setting_is_no_less_accurate_than_standard():
    swept = [{"accuracy": a, "tpf": t} for a, t in ((90.0, 2.0), (91.0, 3.0), (91.0, 4.0), (89.9, 5.0))]
    assert common.chosen_of(swept, {"accuracy": 90.0}) == swept[2]
    assert common.chosen_of(swept, {"accuracy": 95.0}) == swept[2]  # none is: the fastest of the most accurate
    assert common.chosen_of(swept, {"accuracy": 89.0}) == swept[3]
