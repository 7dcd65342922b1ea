"""Confidence intervals against tables, and against their own promise."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ropewalk.evals.report.statistics import mean, ratio, student_quantile, wilson


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (5, 10, 0.2366, 0.7634),
        (1, 1, 0.2065, 1.0),
        (81, 263, 0.2553, 0.3662),  # Newcombe (1998), table I
        (15, 148, 0.0624, 0.1605),
    ],
)
def test_wilson_interval_of_published_examples(successes, trials, low, high):
    estimate = wilson(successes, trials)
    assert (estimate.low, estimate.high) == pytest.approx((low, high), abs=1e-4)
    assert estimate.value == successes / trials


@given(trials=st.integers(1, 500), data=st.data())
def test_wilson_interval_holds_the_share_and_mirrors(trials, data):
    successes = data.draw(st.integers(0, trials))
    one, other = wilson(successes, trials), wilson(trials - successes, trials)
    assert 0.0 <= one.low <= one.value <= one.high <= 1.0
    assert one.low == pytest.approx(1.0 - other.high)


def test_wilson_needs_a_trial():
    with pytest.raises(ValueError, match="at least one trial"):
        wilson(0, 0)


@pytest.mark.parametrize(
    ("degrees", "expected"), [(1, 12.706), (10, 2.228), (30, 2.042), (60, 2.000), (120, 1.980)]
)
def test_student_quantiles_of_the_table(degrees, expected):
    assert student_quantile(degrees) == pytest.approx(expected, abs=3e-3)


def test_the_interval_of_a_mean_covers_it_as_often_as_promised():
    generator = np.random.default_rng(0)
    intervals = [mean(generator.normal(3.0, 2.0, size=5).tolist()) for _ in range(2000)]
    covered = sum(interval.low <= 3.0 <= interval.high for interval in intervals) / 2000
    assert covered == pytest.approx(0.95, abs=0.015)


def test_a_single_value_has_no_interval():
    estimate = mean([2.0])
    assert estimate.value == 2.0
    assert math.isnan(estimate.low)
    assert math.isnan(mean([1.0, math.nan]).value)


def test_a_ratio_of_equal_denominators_is_a_mean():
    values = [1.0, 2.0, 4.0, 7.0]
    one, other = ratio(values, [2.0] * 4), mean([value / 2.0 for value in values])
    assert (one.value, one.low, one.high) == pytest.approx((other.value, other.low, other.high))


def test_a_ratio_weighs_by_its_denominator_and_vanishes_in_spread_when_exact():
    estimate = ratio([2.0, 6.0, 20.0], [1.0, 3.0, 10.0])
    assert estimate.value == pytest.approx(2.0)
    assert estimate.half_width == pytest.approx(0.0, abs=1e-12)
    assert ratio([0.0, 10.0], [1.0, 9.0]).value == 1.0
