import numpy as np
import pytest
from scipy import stats

from overfitting_lab.comparison.statistics import mean
from overfitting_lab.sweeps.selection import Selection


def test_selection_is_what_other_seeds_do_not_confirm() -> None:
    found = Selection("val_acc", 7, 0.54, 40, winner=[0.51, 0.53], baseline=[0.48, 0.48])
    assert found.lead == pytest.approx(0.06)
    assert found.part == pytest.approx(0.02)
    assert found.sentence == (
        "trial 7 is the best of 40 trials with val_acc 54.0%; with 2 other seeds it reaches 52.0% (39.3% to 64.7%), "
        "and the configuration's own values reach 48.0% (48.0% to 48.0%): +2.0 of its lead of +6.0 points come from "
        "selection"
    )


def test_a_loss_is_better_when_it_is_lower() -> None:
    found = Selection("val_loss", 0, 1.5, 2, winner=[1.75], baseline=[2.5])
    assert (found.lead, found.part) == (1.0, 0.25)
    assert "+0.2500 of its lead of +1.0000 nats" in found.sentence


def test_the_interval_of_an_accuracy_stays_between_0_and_1() -> None:
    assert Selection("val_acc", 0, 1.0, 2, [0.4, 0.66], []).interval([0.4, 0.66]) == "53.0% (0.0% to 100.0%)"


def test_without_other_seeds_selection_is_unknown() -> None:
    assert "no run with another seed tells" in Selection("val_acc", 0, 0.5, 4, [], []).sentence


def test_the_best_of_equal_settings_falls_back_to_their_mean() -> None:
    values = np.random.default_rng(0).normal(0.5, 0.02, (2000, 40))  # searches of 40 trials that do not differ
    parts = [Selection("val_acc", 0, max(row), 40, [row.mean()], [0.5]).part for row in values]
    expected = 0.02 * stats.norm.expect(lambda x: 40 * x * stats.norm.cdf(x) ** 39)
    assert np.mean(parts) == pytest.approx(expected, rel=0.05)


def test_students_interval_is_scipys() -> None:
    values = [1.0, 2.5, 3.0]
    low, high = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
    estimate = mean(values, -np.inf, np.inf)
    assert (estimate.low, estimate.high) == pytest.approx((low, high))
