"""The winner of a search against the configuration's own values, and the part of its value that is selection."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from overfitting_lab.comparison.statistics import Estimate, mean, welch_difference, wilson
from overfitting_lab.runs.epochs import Monitor, is_maximized
from overfitting_lab.runs.summary import Summary
from overfitting_lab.sweeps.names import shown, trial_name, unit_of


@dataclass(frozen=True)
class Selection:
    """The winner of a search against itself and against the configuration's own values, with other seeds.

    The winner's value is the best of many, so the luck of its seed is part of it. Other seeds did not choose the
    winner, so with them its settings fall back to their mean (regression to the mean).
    """

    monitor: Monitor
    number: int  # of the winning trial, from 0
    value: float  # its validation value, by which it was chosen
    trials: int  # from which it was chosen
    winner: Sequence[float]  # values of the winner's settings with other seeds
    baseline: Sequence[float]  # values of the configuration's own settings with these seeds
    tied: int = 1  # trials with this value, the winner included
    winner_diverged: int = 0  # runs of the winner's settings with other seeds that did not train to their end
    baseline_diverged: int = 0  # the same, of the configuration's own settings

    @property
    def confirmed(self) -> bool:
        """True if other seeds trained both settings."""
        return bool(self.winner and self.baseline)

    @property
    def difference(self) -> Estimate:
        """The mean of the winner's settings minus the mean of the configuration's, over other seeds.

        The interval is Welch's (1947), which does not pair the seeds: equal seeds do not make two settings alike.
        It is unknown if a mean has one value, or if neither set of values varies.
        """
        if min(len(self.winner), len(self.baseline)) < 2:
            return Estimate(float(np.mean(self.winner) - np.mean(self.baseline)))
        return welch_difference(self.winner, self.baseline, np.inf).points

    @property
    def effect(self) -> Estimate:
        """The winner's value beyond the mean of other seeds, positive if it is better, with Student's interval."""
        found = mean(self.winner, -np.inf, np.inf)
        if is_maximized(self.monitor):
            return Estimate(self.value - found.value, self.value - found.high, self.value - found.low)
        return Estimate(found.value - self.value, found.low - self.value, found.high - self.value)

    @property
    def verdict(self) -> str:
        """What the difference says about the winner. It says nothing if seeds of the winner diverged."""
        if self.winner_diverged:
            return "the winner is not shown to be better than the configuration, because it diverges with some seeds"
        better = self.difference.value * (1 if is_maximized(self.monitor) else -1)
        if self.difference.beyond_noise:
            return f"the winner is {'better' if better > 0 else 'worse'} than the configuration"
        if better <= 0:
            return "the winner is no better than the configuration"
        unsure = (
            "the interval of the difference includes 0"
            if self.difference.known
            else "nothing tells how much of this is noise"
        )
        return f"the winner is not shown to be better than the configuration, because {unsure}"

    @property
    def sentence(self) -> str:
        """How the winner was chosen, what other seeds reach, the verdict, and the part of selection, on one line."""
        if not self.confirmed:
            unknown = self._diverged or "no run with another seed tells how much of that is selection (--confirm)"
            return f"{self._chosen}; {unknown}"
        lower = "" if is_maximized(self.monitor) else ", lower is better"
        return (
            f"{self._chosen}. With {_seeds(len(self.winner))} its settings reach {self.interval(self.winner)}, and the "
            f"configuration's own values reach {self.interval(self.baseline)}. Winner minus configuration: "
            f"{self._difference(self.difference, 'Welch')}{lower}: {self.verdict}{self._effect}"
            f"{self._diverged and f'. These numbers leave out that {self._diverged}'}"
        )

    @property
    def _effect(self) -> str:
        """A sentence about the selection effect; empty if nothing was selected."""
        if self.trials == 1:
            return ""
        return (
            ". Estimate of the selection effect, by which the winner's value is better than with other seeds: "
            f"{self._difference(self.effect, 'Student')}"
        )

    @property
    def _diverged(self) -> str:
        counts = {"its settings": self.winner_diverged, "the configuration's own values": self.baseline_diverged}
        runs = [f"{number} run{'s' * (number > 1)} of {what}" for what, number in counts.items() if number]
        return f"with other seeds, {' and '.join(runs)} did not train to the end" if runs else ""

    @property
    def _chosen(self) -> str:
        among = f"the best of {self.trials} trials" if self.trials > 1 else "the only trial"
        chosen = f"{trial_name(self.number)} is {among} with {self.monitor} {self._shown(self.value)}"
        tie = f", which {self.tied} trials share; it was taken because its number is the lowest of them"
        return f"{chosen}{tie if self.tied > 1 else ''}"

    def interval(self, values: Sequence[float]) -> str:
        """Return the mean of values with Student's 95 % interval, or the reason why there is none."""
        estimate = mean(values, -np.inf, np.inf)
        if not estimate.known:
            equal = " with equal values" if len(values) > 1 else ""
            return f"{self._shown(estimate.value)} (n = {len(values)}{equal}: no interval)"
        bounds = {"val_acc": (0.0, 1.0), "val_loss": (0.0, np.inf)}
        least, most = bounds.get(self.monitor, (-np.inf, np.inf))
        ends = f"{self._shown(max(estimate.low, least))} to {self._shown(min(estimate.high, most))}"
        return f"{self._shown(estimate.value)} (n = {len(values)}, 95 % Student interval {ends})"

    def _shown(self, value: float) -> str:
        return shown(value, self.monitor)

    def _difference(self, estimate: Estimate, method: str) -> str:
        scale, digits, unit = (100, 1, " points") if self.monitor == "val_acc" else (1, 4, unit_of(self.monitor))
        value, low, high = (f"{scale * each:+.{digits}f}" for each in (estimate.value, estimate.low, estimate.high))
        interval = f"95 % {method} interval {low} to {high}" if estimate.known else "no interval"
        return f"{value}{unit} ({interval})"


def _seeds(number: int) -> str:
    return f"{number} other seed{'s' * (number > 1)}"


def tested_against_validation(summary: Summary) -> str:
    """Return a sentence that compares test and validation accuracy of a run's best checkpoint.

    The validation accuracy has Wilson's interval. The interval covers the choice of the validation images. It does not
    cover that the same images chose the checkpoint.
    """
    assert summary.test is not None
    assert summary.best is not None
    images = summary.data.val_size
    accuracy = wilson(round(summary.best.val_acc * images), images)
    return (
        f"accuracy {summary.test.acc:.1%} on {summary.tested_on} test images; on the {images:,} validation images "
        f"that chose it {accuracy.value:.1%} (95 % Wilson interval {accuracy.low:.1%} to {accuracy.high:.1%})"
    )
