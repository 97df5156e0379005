"""Intervals against published t quantiles."""

import numpy as np
import pytest

from bn_keras import stats


def test_interval_matches_the_table_of_student_t():
    # t(.975) with 2 degrees of freedom is 4.303; standard deviation 1, so the half is 4.303/sqrt 3.
    mean, low, high = stats.mean_interval([1.0, 2.0, 3.0])
    assert mean == 2.0
    assert high - mean == pytest.approx(4.303 / np.sqrt(3), abs=1e-3)
    assert mean - low == pytest.approx(high - mean)


def test_one_value_has_no_interval():
    assert stats.mean_interval([0.5]) == (0.5, None, None)


def test_the_interval_covers_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(2000):
        _, low, high = stats.mean_interval(rng.normal(3.0, 2.0, 3))
        hits += low <= 3.0 <= high
    assert hits / 2000 == pytest.approx(0.95, abs=0.015)


def test_a_paired_difference_uses_common_seeds_only():
    first, second = {0: 1.0, 1: 3.0, 2: 9.0}, {0: 0.5, 1: 3.5}
    mean, low, high, pairs, wins = stats.paired_difference(first, second)
    assert (mean, pairs, wins) == (0.0, 2, 1)
    assert low == -high
    with pytest.raises(ValueError, match=r"no seed in common: \[0\] and \[1\]"):
        stats.paired_difference({0: 1.0}, {1: 1.0})


def test_steps_to_target_is_the_first_step_at_or_above_it():
    curve = [[10, 0.5], [20, None], [30, 0.9], [40, 0.8]]
    assert stats.steps_to_target(curve, 0.9) == 30
    assert stats.steps_to_target(curve, 0.95) is None


@pytest.mark.parametrize(
    "values, text",
    [
        ([0.5], ".500"), ([1, 3, 2], "2 [1, 3]"), ([None, None], "never"),
        ([500, None, 250], "250 to never"), ([500, None], "500, or never"),
        ([12750.0, 4250, 9000], "9,000 [4,250, 12,750]"), ([2.4, 2.4], "2.4"),
    ],
)
def test_a_figure_is_median_and_range(values, text):
    assert stats.figure(values) == text
