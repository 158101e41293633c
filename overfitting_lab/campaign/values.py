"""The values of an entry's runs, as text for the pages."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np

from overfitting_lab.campaign.plan import Entry
from overfitting_lab.comparison.groups import NamedRun
from overfitting_lab.comparison.statistics import Estimate, mean_cell, paired_difference, welch_difference
from overfitting_lab.runs import Run
from overfitting_lab.runs.epochs import EpochRecord
from overfitting_lab.runs.provenance import short_commit
from overfitting_lab.sweeps.effects import CellMeans
from overfitting_lab.sweeps.factors import SEED, SUBSET
from overfitting_lab.sweeps.trial import Trial, by_training, result_of, with_one_gap

METRICS = {
    "training": "train_acc",
    "validation": "val_acc",
    "test": "test_acc",
    "gap": "gap",
    "calibration": "calibration_error",
}


class NotMeasuredError(Exception):
    """A page asks for a figure of an entry without runs. The message is the entry's name."""


@dataclass(frozen=True)
class Measured:
    """The results of an entry. Accuracies and gaps are fractions of 1, and become text in per cent or points."""

    entry: Entry
    runs: Mapping[int, Run]  # reference runs by seed
    gap_by: str | None = None  # instrument of the gap; by default the probe if all runs have one, else training

    @property
    def n(self) -> int:
        """The number of seeds; may be 0."""
        return len(self.runs)

    @property
    def trials(self) -> list[Trial]:
        """The results by seed, with gaps of one instrument.

        Raises:
            NotMeasuredError: if there is none.
        """
        found = [_result(run, seed) for seed, run in self.runs.items()]
        if not found:
            raise NotMeasuredError(self.entry.name)
        return [*map(by_training, found)] if self.gap_by == "training" else with_one_gap(found)

    @property
    def by_training(self) -> "Measured":
        """The same results with the gap from training accuracy, which is measured with dropout and augmentation on."""
        return replace(self, gap_by="training")

    @property
    def instrument(self) -> str:
        """The accuracy on training images from which the gap is computed: ``probe`` or ``training``."""
        return self.trials[0].gap_instrument

    def values(self, metric: str) -> list[float]:
        """Return the values of ``training``, ``validation``, ``test``, ``gap`` or ``calibration`` by seed."""
        return [getattr(trial, METRICS[metric]) for trial in self.trials]

    def mean(self, metric: str) -> float:
        """Return the mean over seeds."""
        return float(np.mean(self.values(metric)))

    def text(self, metric: str) -> str:
        """Return the mean over seeds in hundredths, of several with the standard deviation: ``42.3 ± 0.6 %``."""
        return text_of(self.trials, metric)

    @property
    def seeds(self) -> str:
        """The seeds, such as ``0 to 2``, or ``0, 1, 4`` while some are missing."""
        return seeds_of(self.trials)

    @property
    def run(self) -> Run:
        """The reference run with the first seed.

        Raises:
            NotMeasuredError: if there is none.
        """
        if not self.runs:
            raise NotMeasuredError(self.entry.name)
        return next(iter(self.runs.values()))

    @property
    def records(self) -> list[EpochRecord]:
        """The epochs of the run with the first seed."""
        return self.run.records

    @property
    def best(self) -> EpochRecord:
        """The epoch of the run with the first seed whose checkpoint was tested."""
        best = self.run.summary.best
        assert best is not None, "the pages quote runs with a validation"
        return next(record for record in self.records if record.epoch == best.epoch)

    @property
    def tested(self) -> Estimate:
        """The test accuracy of the run with the first seed, with Wilson's interval."""
        return NamedRun(self.entry.name, self.run).accuracy

    @property
    def epochs(self) -> int:
        """The number of epochs of the runs' settings."""
        return int(self.entry.recipe["trainer.max_epochs"])

    @property
    def commits(self) -> str:
        """The commits of the code that made the runs."""
        return commits_of(self.trials)

    @property
    def precisions(self) -> str:
        """The precision of the runs, such as ``32-true``; if they differ, each with its seeds."""
        groups: dict[str, list[Trial]] = {}
        for trial in self.trials:
            groups.setdefault(trial.origin["precision"], []).append(trial)
        if len(groups) == 1:
            return next(iter(groups))
        return " and ".join(f"{precision} (seeds {seeds_of(trials)})" for precision, trials in groups.items())

    @property
    def time(self) -> str:
        """The shortest and the longest time of a run, such as ``0:05 h``."""
        seconds = [trial.seconds for trial in self.trials]
        ends = dict.fromkeys(hours(each) for each in (min(seconds), max(seconds)))
        return f"{' to '.join(ends)} h"


def text_of(trials: Sequence[Trial], metric: str) -> str:
    """Return the mean of a metric in hundredths, of several trials with the standard deviation."""
    values = [getattr(trial, METRICS[metric]) for trial in trials]
    return mean_cell(values, unit="" if metric in ("gap", "calibration") else " %")


def seeds_of(trials: Sequence[Trial]) -> str:
    """Return the seeds of trials, such as ``0 to 2``, or ``0, 1, 4`` while some are missing."""
    seeds = [trial.setting[SEED.name] for trial in trials]
    whole = len(seeds) > 1 and seeds == [*range(seeds[0], seeds[-1] + 1)]
    return f"{seeds[0]} to {seeds[-1]}" if whole else ", ".join(map(str, seeds))


def commits_of(trials: Sequence[Trial]) -> str:
    """Return the commits of the code that made the runs of trials."""
    return ", ".join(dict.fromkeys(short_commit(trial.origin["commit"]) for trial in trials))


@dataclass(frozen=True)
class Cell:
    """The results of one cell of an ablation."""

    levels: Mapping[str, Any]  # of each factor
    changed: Mapping[str, Any]  # the levels that are not the factor's first
    trials: Sequence[Trial]
    gains: Mapping[str, Estimate]  # by metric: difference between the mean and the mean of the first cell

    @property
    def name(self) -> str:
        """The levels that changed, such as ``dropout=0.5``; empty for the first cell."""
        return ",".join(f"{factor}={level}" for factor, level in sorted(self.changed.items()))

    @property
    def label(self) -> str:
        """The level of a single factor, such as ``width=0.125``; of several, the levels that changed, or ``none``."""
        levels = [f"{factor}={level}" for factor, level in self.levels.items()]
        return levels[0] if len(levels) == 1 else self.name or "none"

    @property
    def n(self) -> int:
        """The number of runs: one for each seed and set of images."""
        return len(self.trials)

    def text(self, metric: str) -> str:
        """Return the mean over seeds, see :func:`text_of`."""
        return text_of(self.trials, metric)

    @property
    def commits(self) -> str:
        """The commits of the code that made the runs."""
        return commits_of(self.trials)


def cells_of(trials: Sequence[Trial]) -> list[Cell]:
    """Return the cells of an ablation. In the first one, every factor is at its first level."""
    groups: dict[frozenset[tuple[str, Any]], list[Trial]] = {}
    for trial in with_one_gap(trials):
        levels = frozenset(level for level in trial.setting.items() if level[0] not in (SEED.name, SUBSET.name))
        groups.setdefault(levels, []).append(trial)
    first = next(iter(groups))
    means = {metric: CellMeans([*groups.values()], name) for metric, name in METRICS.items()}
    cells = []
    for place, (levels, group) in enumerate(groups.items()):
        gains = {metric: mean.against_first(place) for metric, mean in means.items()}
        cells.append(Cell(dict(levels), dict(levels - first), group, gains))
    return cells


@cache
def _result(run: Run, seed: int) -> Trial:
    return result_of(run, {SEED.name: seed})


def hours(seconds: float) -> str:
    """Return a duration in hours and minutes, such as ``1:44``."""
    minutes = round(seconds / 60)
    return f"{minutes // 60}:{minutes % 60:02}"


def alike(found: Sequence[Measured]) -> list[Measured]:
    """Return results whose gaps have one instrument: the probe if all runs have one, otherwise training."""
    instruments = {one.instrument for one in found if one.n}
    by = "probe" if instruments == {"probe"} else "training"
    return [replace(one, gap_by=by) for one in found]


def difference(first: Measured, second: Measured) -> Estimate:
    """Return the first mean test accuracy minus the second.

    The interval is Welch's if both have several seeds. With one seed each, it is about other test images. One seed
    against several allows none.
    """
    value = Estimate(first.mean("test") - second.mean("test"))
    if min(first.n, second.n) > 1:
        return welch_difference(first.values("test"), second.values("test")).points
    if max(first.n, second.n) > 1:
        return value
    mine, its = (NamedRun(each.entry.name, each.run).correct for each in (first, second))
    return value if mine is None or its is None else paired_difference(mine, its).points
