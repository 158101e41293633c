import numpy as np
import pytest

from overfitting_lab.comparison.statistics import (
    Estimate,
    mean,
    paired_difference,
    unpaired_difference,
    welch_difference,
    wilson,
)


def test_wilson_gives_published_intervals() -> None:
    # Newcombe (1998), "Two-sided confidence intervals for the single proportion", table I, method 3.
    for right, images, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611)):
        found = wilson(right, images)
        assert (found.value, found.low, found.high) == pytest.approx((right / images, low, high), abs=5e-5)


def test_a_mean_has_students_interval() -> None:
    found = mean([0.41, 0.42, 0.43, 0.44])
    half = 3.182446 * np.std([0.41, 0.42, 0.43, 0.44], ddof=1) / 2  # t for 3 degrees of freedom
    assert (found.value, found.low, found.high) == pytest.approx((0.425, 0.425 - half, 0.425 + half))
    assert (mean([0.1, 0.9]).low, mean([0.1, 0.9]).high) == (0, 1)
    assert not mean([1.0]).known
    assert not mean([0.1, 0.1]).known, "equal values show no variation"


def test_an_interval_that_excludes_zero_is_beyond_noise() -> None:
    assert all(estimate.beyond_noise for estimate in (Estimate(1, 0.5, 1.5), Estimate(-1, -1.5, -0.5)))
    assert not any(estimate.beyond_noise for estimate in (Estimate(1, -0.5, 2), Estimate(1)))


def test_mcnemar_counts_only_images_on_which_two_networks_disagree() -> None:
    first = np.array([True] * 9 + [False] * 1 + [True] * 50 + [False] * 40)
    second = np.array([False] * 9 + [True] * 1 + [True] * 50 + [False] * 40)
    found = paired_difference(first, second)
    assert found.p == pytest.approx(2 * (1 + 10) / 2**10)  # of ten coins, at most one tail, two-sided
    interval = (found.points.low, found.points.high)  # 8 / 102 -+ 1.96 * sqrt(11 - 8**2 / 102) / 102
    assert (found.points.value, *interval) == pytest.approx((0.08, 0.0165, 0.1404), abs=1e-4)
    again = paired_difference(second, first)
    assert (again.p, again.points.value, again.points.low) == pytest.approx(
        (found.p, -0.08, -found.points.high), abs=1e-12
    )
    assert paired_difference(first, first).p == 1


def test_the_paired_interval_holds_the_truth_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    hits = 0
    for _ in range(1000):
        which = random.choice(4, size=300, p=[0.4, 0.15, 0.1, 0.35])  # both, first alone, second alone, none
        found = paired_difference(np.isin(which, (0, 1)), np.isin(which, (0, 2))).points
        hits += found.low <= 0.05 <= found.high
    assert 0.93 <= hits / 1000 <= 0.98


def test_welch_compares_seeds() -> None:
    same, other = [0.42, 0.43, 0.44], [0.52, 0.53, 0.54]
    found = welch_difference(other, same)
    assert found.points.value == pytest.approx(0.1)
    assert 0 < found.points.low < 0.1 < found.points.high
    assert found.p == pytest.approx(2.56e-4, rel=0.01)  # t = 12.25 with 4 degrees of freedom
    assert welch_difference(same, [0.41, 0.43, 0.46]).p > 0.5
    still = welch_difference([0.5, 0.5], [0.4, 0.4])
    assert still.points.in_points() == "+10.0"
    assert np.isnan(still.p)


def test_newcombes_interval_is_made_of_wilsons() -> None:
    # Newcombe (1998), "Interval estimation for the difference between independent proportions", method 10, by hand.
    found = unpaired_difference(wilson(56, 70), wilson(42, 70), 70)
    assert (found.points.value, found.points.low, found.points.high) == pytest.approx((0.2, 0.0488, 0.3405), abs=2e-3)
    assert found.p == pytest.approx(0.0157, abs=5e-3)
