"""Metrics against published tables and sums done by hand."""

import math

import numpy as np
import pytest

from jaxdiff import InputError
from jaxdiff.metrics import aup, paired_difference, tpf, wilson

# Newcombe 1998 (Statistics in Medicine 17, 857-872), table I, method 3.
WILSON = {(81, 263): (0.2553, 0.3662), (15, 148): (0.0624, 0.1605), (0, 20): (0.0, 0.1611), (1, 29): (0.0061, 0.1718)}


@pytest.mark.parametrize(("trials", "interval"), WILSON.items())
def test_wilson_gives_the_published_intervals(trials, interval):
    assert wilson(*trials) == pytest.approx(interval, abs=1e-4)


def test_wilson_is_symmetric_and_touches_the_ends():
    low, high = wilson(3, 40)
    assert wilson(37, 40) == pytest.approx((1 - high, 1 - low))
    assert wilson(0, 7)[0] == 0.0
    assert wilson(7, 7)[1] == 1.0


def test_wilson_of_one_trial_by_hand():
    # z = 1: centre (1 + 1/2) / 2 = 3/4, half sqrt(1/4) / 2 = 1/4.
    assert wilson(1, 1, z=1.0) == pytest.approx((0.5, 1.0))


@pytest.mark.parametrize("trials", [(0, 0), (5, 4), (-1, 4)])
def test_wilson_refuses_what_cannot_be(trials):
    with pytest.raises(InputError, match="wilson: found"):
        wilson(*trials)


def pairs(both, only_first, only_second, neither):
    counts = (both, only_first, only_second, neither)
    return np.repeat([True, True, False, False], counts), np.repeat([True, False, True, False], counts)


# Newcombe 1998 (Statistics in Medicine 17, 2635-2650), table III, method 10.
PAIRED = {
    (36, 12, 2, 0): (0.0569, 0.3404),
    (20, 12, 2, 16): (0.0562, 0.3292),
    (36, 14, 0, 0): (0.1528, 0.4167),
    (35, 14, 0, 1): (0.1461, 0.4175),
    (1, 97, 1, 1): (0.8736, 0.9850),
    (54, 0, 0, 0): (-0.0664, 0.0664),
    (30, 0, 0, 24): (-0.0358, 0.0358),
}


@pytest.mark.parametrize(("table", "interval"), PAIRED.items())
def test_paired_difference_gives_the_published_intervals(table, interval):
    assert paired_difference(*pairs(*table))[1:] == pytest.approx(interval, abs=1e-4)


def test_paired_difference_is_antisymmetric_and_covers_the_difference():
    first, second = pairs(20, 7, 3, 10)
    difference, low, high = paired_difference(first, second)
    assert difference == pytest.approx(0.1)
    assert low < difference < high
    assert paired_difference(second, first) == pytest.approx((-difference, -high, -low))


@pytest.mark.parametrize("answers", [np.arange(50) < 20, np.ones(50, bool), np.zeros(50, bool)])
def test_paired_difference_of_equal_answers_covers_zero_with_some_width(answers):
    difference, low, high = paired_difference(answers, answers)
    assert difference == 0.0
    assert low < 0.0 < high
    assert high == pytest.approx(-low)


def test_pairing_narrows_the_interval_where_answers_go_together():
    together = paired_difference(*pairs(60, 10, 0, 30))
    apart = paired_difference(*pairs(42, 28, 18, 12))  # the same two accuracies, independent
    assert together[0] == apart[0]
    assert together[2] - together[1] < 0.7 * (apart[2] - apart[1])


def test_paired_difference_refuses_vectors_that_cannot_be_paired():
    with pytest.raises(InputError, match="two equal lengths"):
        paired_difference([True, False], [True])
    with pytest.raises(InputError, match="two equal lengths"):
        paired_difference([], [])


def test_tpf_is_total_over_total():
    assert tpf([30, 10], [5, 10]) == pytest.approx(40 / 15)  # the mean of the ratios is 3.5


def test_aup_of_one_point_is_its_rectangle():
    assert aup([(1.5, 80.0)], best=90.0) == pytest.approx(1.5 * 80.0)


def test_aup_at_the_best_accuracy_is_the_speed_times_it():
    assert aup([(1.0, 90.0), (2.0, 90.0), (4.0, 90.0)], best=90.0) == pytest.approx(4.0 * 90.0)


def test_aup_by_hand():
    # Unsorted on purpose; best 80. W(80) = 1; W(76) = exp(-3 * 4 / 80) = exp(-0.15).
    # 74 is below 80 - 5: left out, however fast.
    by_hand = 1.0 * 80.0 + (3.0 - 1.0) * (76.0 * math.exp(-0.15) + 80.0) / 2
    assert aup([(3.0, 76.0), (1.0, 80.0), (6.0, 74.0)], best=80.0) == pytest.approx(by_hand)
    # The first rectangle is not weighted, the trapezoids are: another policy that reaches 100 costs this one its tail.
    weighted = [y * math.exp(-3 * (1 - y / 100)) for y in (80.0, 76.0)]
    assert aup([(1.0, 80.0), (3.0, 76.0)], best=100.0) == pytest.approx(80.0 + 2.0 * sum(weighted) / 2)


def test_aup_keeps_a_point_just_at_the_tolerance_and_goes_on_after_a_dip():
    dipped = aup([(1.0, 80.0), (2.0, 60.0), (3.0, 80.0)], best=80.0)
    assert dipped == pytest.approx(3.0 * 80.0)  # the dip is left out, its neighbours are joined
    assert aup([(1.0, 80.0), (2.0, 75.0)], best=80.0) > 80.0


def test_aup_of_nothing_right_is_zero_and_of_no_points_an_error():
    assert aup([(1.0, 0.0), (2.0, 0.0)], best=0.0) == 0.0
    with pytest.raises(InputError, match="no points"):
        aup([], best=90.0)
