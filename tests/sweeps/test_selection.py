import numpy as np
import pytest
from scipy import stats

from overfitting_lab.comparison.statistics import mean
from overfitting_lab.sweeps.selection import Selection


def test_selection_is_what_other_seeds_do_not_confirm() -> None:
    found = Selection("val_acc", 7, 0.54, 40, winner=[0.51, 0.53], baseline=[0.48, 0.48])
    assert found.difference.value == pytest.approx(0.04)
    assert found.effect.value == pytest.approx(0.02)
    assert found.sentence == (
        "trial 8 is the best of 40 trials with val_acc 54.0%. With 2 other seeds its settings reach 52.0% (n = 2, 95 % "
        "Student interval 39.3% to 64.7%), and the configuration's own values reach 48.0% (n = 2 with equal values: no "
        "interval). Winner minus configuration: +4.0 points (95 % Welch interval -8.7 to +16.7): the winner is not "
        "shown to be better than the configuration, because the interval of the difference includes 0. Estimate of the "
        "selection effect, by which the winner's value is better than with other seeds: +2.0 points (95 % Student "
        "interval -10.7 to +14.7)"
    )


def test_a_loss_is_better_when_it_is_lower() -> None:
    found = Selection("val_loss", 0, 1.5, 2, winner=[1.75], baseline=[2.5])
    assert (found.difference.value, found.effect.value) == (-0.75, 0.25)
    assert "-0.7500 nats (no interval), lower is better: the winner is not shown to be better" in found.sentence
    assert "better than with other seeds: +0.2500 nats (no interval)" in found.sentence
    low, high = stats.t.interval(0.95, 1, 1.75, stats.sem([1.5, 2.0]))
    effect = Selection("val_loss", 0, 1.0, 2, winner=[1.5, 2.0], baseline=[2.5]).effect
    assert (effect.low, effect.high) == pytest.approx((low - 1, high - 1))


@pytest.mark.parametrize(
    ("winner", "baseline", "verdict"),
    [
        ([0.60, 0.61, 0.62], [0.50, 0.51, 0.52], "the winner is better than the configuration"),
        ([0.50, 0.51, 0.52], [0.60, 0.61, 0.62], "the winner is worse than the configuration"),
        ([0.50, 0.60], [0.51, 0.62], "the winner is no better than the configuration"),
        ([0.50], [0.50], "the winner is no better than the configuration"),
        ([0.6, 0.6], [0.5, 0.5], "not shown to be better than the configuration, because nothing tells how much"),
    ],
)
def test_the_verdict_is_about_the_configuration(winner: list[float], baseline: list[float], verdict: str) -> None:
    acc = Selection("val_acc", 0, 0.6, 40, winner, baseline)
    assert f": {verdict}" in acc.sentence.replace("the winner is not", "not")
    loss = Selection("val_loss", 0, 0.4, 40, [1 - each for each in winner], [1 - each for each in baseline])
    assert loss.verdict == acc.verdict


def test_tied_trials_are_counted() -> None:
    found = Selection("val_acc", 2, 0.5, 40, [], [], tied=3).sentence
    assert "which 3 trials share; it was taken because its number is the lowest of them" in found
    assert "trial 1 is the only trial with" in Selection("val_acc", 0, 0.5, 1, [], []).sentence


def test_the_interval_of_an_accuracy_stays_between_0_and_1() -> None:
    assert "95 % Student interval 0.0% to 100.0%" in Selection("val_acc", 0, 1.0, 2, [0.4, 0.66], []).interval(
        [0.4, 0.66]
    )


def test_welchs_interval_is_scipys() -> None:
    winner, baseline = [1.0, 2.5, 3.0], [0.5, 0.6, 0.8, 0.9]
    found = Selection("val_loss", 0, 1.0, 2, winner, baseline).difference
    interval = stats.ttest_ind(winner, baseline, equal_var=False).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))


def test_without_other_seeds_selection_is_unknown() -> None:
    assert "no run with another seed tells" in Selection("val_acc", 0, 0.5, 4, [], []).sentence


def test_the_best_of_equal_settings_falls_back_to_their_mean() -> None:
    values = np.random.default_rng(0).normal(0.5, 0.02, (2000, 40))  # searches of 40 trials that do not differ
    parts = [Selection("val_acc", 0, max(row), 40, [row.mean()], [0.5]).effect.value for row in values]
    expected = 0.02 * stats.norm.expect(lambda x: 40 * x * stats.norm.cdf(x) ** 39)
    assert np.mean(parts) == pytest.approx(expected, rel=0.05)


def test_students_interval_is_scipys() -> None:
    values = [1.0, 2.5, 3.0]
    low, high = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
    estimate = mean(values, -np.inf, np.inf)
    assert (estimate.low, estimate.high) == pytest.approx((low, high))


def test_seeds_that_diverge_are_told_and_leave_no_verdict_for_the_winner() -> None:
    found = Selection("val_acc", 2, 0.9, 40, [0.8, 0.81], [0.5, 0.51, 0.52], winner_diverged=1)
    assert "the winner is not shown to be better than the configuration, because it diverges with some" in found.verdict
    assert found.sentence.endswith(
        ". These numbers leave out that with other seeds, 1 run of its settings did not train to the end"
    )
    none_left = Selection("val_acc", 2, 0.9, 40, [], [0.5], winner_diverged=2, baseline_diverged=1)
    assert none_left.sentence.endswith(
        "; with other seeds, 2 runs of its settings and 1 run of the configuration's own values did not train to the "
        "end"
    )


def test_one_trial_selects_nothing() -> None:
    found = Selection("val_acc", 0, 0.5, 1, [0.55, 0.56, 0.57], [0.5, 0.5, 0.51])
    assert "selection effect" not in found.sentence
    assert found.sentence.endswith(found.verdict)
