"""The part of a winner's lead that comes from selection, the choice of the best of many noisy values."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from overfitting_lab.comparison.statistics import mean, wilson
from overfitting_lab.runs.epochs import Monitor
from overfitting_lab.runs.summary import Summary
from overfitting_lab.sweeps.names import shown


@dataclass(frozen=True)
class Selection:
    """The winner of a search against itself and against the configuration's own values, with other seeds.

    The winner's value is the best of many, so the luck of its seed is part of it. Other seeds did not choose the
    winner, so with them its settings fall back to their mean (regression to the mean).
    """

    monitor: Monitor
    number: int  # of the winning trial
    value: float  # its validation value, by which it was chosen
    trials: int  # from which it was chosen
    winner: Sequence[float]  # values of the winner's settings with other seeds
    baseline: Sequence[float]  # values of the configuration's own settings with these seeds

    @property
    def lead(self) -> float:
        """The winner's value minus the baseline's mean, positive if the winner is better."""
        return self._better(self.value, float(np.mean(self.baseline)))

    @property
    def part(self) -> float:
        """The part of the lead that other seeds do not confirm, negative if they reach more than the winner."""
        return self._better(self.value, float(np.mean(self.winner)))

    @property
    def sentence(self) -> str:
        """The estimate in one sentence."""
        chosen = (
            f"trial {self.number} is the best of {self.trials} trials with {self.monitor} {self._shown(self.value)}"
        )
        if not self.winner or not self.baseline:
            return f"{chosen}; no run with another seed tells how much of that is selection (--confirm)"
        seeds = f"{len(self.winner)} other seed{'s' * (len(self.winner) > 1)}"
        unit = "points" if self.monitor == "val_acc" else "nats"
        return (
            f"{chosen}; with {seeds} it reaches {self.interval(self.winner)}, and the configuration's own values reach "
            f"{self.interval(self.baseline)}: {self._difference(self.part)} of its lead of "
            f"{self._difference(self.lead)} {unit} come from selection"
        )

    def interval(self, values: Sequence[float]) -> str:
        """Return the mean of values and, for two or more values, Student's 95 % interval."""
        estimate = mean(values) if self.monitor == "val_acc" else mean(values, -np.inf, np.inf)
        ends = f" ({self._shown(estimate.low)} to {self._shown(estimate.high)})" if estimate.known else ""
        return f"{self._shown(estimate.value)}{ends}"

    def _better(self, first: float, second: float) -> float:
        return first - second if self.monitor == "val_acc" else second - first

    def _shown(self, value: float) -> str:
        return shown(value, self.monitor)

    def _difference(self, value: float) -> str:
        return f"{100 * value:+.1f}" if self.monitor == "val_acc" else f"{value:+.4f}"


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
        f"accuracy {summary.test.acc:.1%} on {summary.test.images:,} test images; on the {images:,} validation images "
        f"that chose it {accuracy.in_percent()}"
    )
