"""Intervals against hand-computed numbers and against scipy."""

from __future__ import annotations

import math

import pytest
from scipy import stats

from unify_posttrain.measures.intervals import Interval, paired_difference, t_interval


def test_interval_by_hand() -> None:
    # Values 1, 2, 3: mean 2, s = sqrt((1 + 0 + 1) / 2) = 1; t(.975; 2) = 4.302653 (tables); 4.302653 * 1 / sqrt(3) = 2.484138.
    interval = t_interval([1.0, 2.0, 3.0], 0.95)
    assert interval.mean == pytest.approx(2.0)
    assert interval.half_width == pytest.approx(2.484138, abs=1e-6)
    assert interval.n == 3
    # Two values, 90 %: s = sqrt(2), t(.95; 1) = 6.313752, so the half-width is 6.313752 * sqrt(2) / sqrt(2).
    assert t_interval([1.0, 3.0], 0.9).half_width == pytest.approx(6.313752, abs=1e-6)


@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
def test_interval_is_that_of_scipy(confidence: float) -> None:
    values = [0.31, 0.42, 0.15, 0.66, 0.59]
    low, high = stats.t.interval(confidence, len(values) - 1, loc=sum(values) / 5, scale=stats.sem(values))
    interval = t_interval(values, confidence)
    assert interval.mean is not None and interval.half_width is not None
    assert interval.mean - interval.half_width == pytest.approx(low)
    assert interval.mean + interval.half_width == pytest.approx(high)


def test_one_seed_has_no_interval_and_no_seed_no_mean() -> None:
    assert t_interval([0.5], 0.95) == Interval(0.5, None, 1)
    assert t_interval([], 0.95) == Interval(None, None, 0)


def test_what_was_not_measured_is_left_out() -> None:
    assert t_interval([None, math.nan, 0.25], 0.95) == Interval(0.25, None, 1)


def test_difference_pairs_equal_seeds() -> None:
    # Seeds 0 and 2 are in both: differences .3 - .1 = .2 and .5 - .1 = .4; mean .3, s = .141421, t(.975; 1) = 12.7062.
    difference = paired_difference({0: 0.3, 1: 0.9, 2: 0.5, 4: None}, {0: 0.1, 2: 0.1, 3: 0.7, 4: 0.2}, 0.95)
    assert difference.n == 2
    assert difference.mean == pytest.approx(0.3)
    assert difference.half_width == pytest.approx(12.7062 * 0.1, abs=1e-5)


def test_a_common_shift_of_the_seeds_cancels() -> None:
    difference = paired_difference({0: 0.2, 1: 0.6, 2: 0.9}, {0: 0.1, 1: 0.5, 2: 0.8}, 0.95)
    assert difference.mean == pytest.approx(0.1)
    assert difference.half_width == pytest.approx(0.0, abs=1e-12)
