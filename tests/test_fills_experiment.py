"""The fills experiment's comparisons, of points and counts that are made up."""

import numpy as np
import pytest

from experiments.fills import run as experiment


def point(value, work, accuracy=50.0):
    return {"value": value, "fill": 1, "nfe": 1.0, "cheap": 0.0, "work": work, "accuracy": accuracy, "correct": "01"}


def test_a_point_stands_beside_its_own_number_and_no_less_work():
    parallel = [point(8, 8.0), point(4, 4.0), point(2, 2.0)]
    found = experiment.beside(point(2, 2.4), parallel)
    assert [found[name]["value"] for name in ("same number", "no less work")] == [2, 4]
    assert experiment.beside(point(8, 8.5), parallel)["no less work"]["value"] == 8  # there is none with more
    both = experiment.pooled([point(2, 2.0), point(2, 3.0, accuracy=100.0)])
    assert (both["work"], both["accuracy"], both["correct"]) == (2.5, 75.0, "0101")


def test_answers_are_told_by_the_order_of_their_letters():
    question, given = "abcdefghijkl", "abcd"
    assert experiment.order_of("efgh", question, given) == experiment.order_of("eikl", question, given) == 0
    assert experiment.order_of("lkje", question, given) == len(experiment.ORDERS) - 1
    for wrong in ("eeff", "efga", "efgz", "efg"):  # twice, given, unknown, too few
        assert experiment.order_of(wrong, question, given) == len(experiment.ORDERS)


def test_the_distance_from_the_true_joint():
    true = np.asarray([*[100] * 24, 0])
    assert experiment.distance(true) == pytest.approx(0.0)
    assert experiment.distance(np.eye(25)[24]) == 1.0
    half = np.asarray([*[200] * 12, *[0] * 13])
    assert experiment.distance(half) == pytest.approx(0.5)
    assert experiment.differ(true, true) == 1.0
    assert experiment.differ(true, half) < 1e-6
