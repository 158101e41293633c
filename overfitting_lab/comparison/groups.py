"""Runs with short names, and groups of runs that differ at most in their seed."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from overfitting_lab.comparison.ensemble import Answers
from overfitting_lab.comparison.statistics import Estimate, mean, wilson
from overfitting_lab.runs import Run
from overfitting_lab.runs.calibration import Calibration, at_temperature, calibration
from overfitting_lab.runs.epochs import METRICS, EpochRecord, Gap, Instrument, has_probe, last_gap
from overfitting_lab.runs.summary import Summary, TestSummary

# Earlier versions kept probabilities as float16.
SMALLEST_KEPT = 6e-8  # smaller ones became 0
OFF = 0.002  # calibration error that may come from it


@dataclass(frozen=True)
class NamedRun:
    """A finished run with a short name that no other run of the comparison has."""

    name: str
    run: Run

    @property
    def summary(self) -> Summary:
        """The content of ``summary.json``."""
        return self.run.summary

    @property
    def test(self) -> TestSummary:
        """The result on the test images, which every finished run has."""
        assert self.summary.test is not None
        return self.summary.test

    @cached_property
    def accuracy(self) -> Estimate:
        """The test accuracy with Wilson's interval."""
        return wilson(round(self.test.acc * self.test.images), self.test.images)

    @property
    def tested(self) -> str:
        """The test accuracy in per cent with its interval, and which weights were tested if not the best epoch's."""
        note = "" if self.test.checkpoint == "best" else f", {self.test.checkpoint} weights"
        note += ", averaged weights" * bool(self.test.averaged)
        return self.accuracy.in_percent() + note

    @cached_property
    def correct(self) -> NDArray[np.bool_] | None:
        """Tell of each test image if the run classified it correctly, bool [N]; ``None`` without ``images.npz``."""
        images = self.run.images
        return images["test_predictions"] == images["test_labels"] if "test_labels" in images else None

    @cached_property
    def confusion(self) -> NDArray[np.int64] | None:
        """Counts [classes, classes], a row a true class; ``None`` without ``images.npz``."""
        images, classes = self.run.images, len(self.summary.data.classes)
        if "test_labels" not in images:
            return None
        counts = np.zeros((classes, classes), dtype=np.int64)
        np.add.at(counts, (images["test_labels"], images["test_predictions"]), 1)
        return counts

    @cached_property
    def calibration(self) -> Calibration | None:
        """The calibration on the test images; ``None`` without ``images.npz``."""
        return _calibration([self.answers])

    @property
    def answers(self) -> Answers | None:
        """The answers for the test images; ``None`` without ``images.npz``."""
        probabilities = self.run.test_probabilities
        return None if probabilities is None else Answers(self.run.images["test_labels"], probabilities)

    @property
    def answers_at_temperature(self) -> Answers | None:
        """The answers with outputs that are divided by the run's temperature; ``None`` if they are unknown."""
        if self.answers is None or self.test.temperature is None:
            return None
        labels, probabilities, _ = self.answers
        if (logits := self.run.images.get("test_logits")) is not None:
            return Answers(labels, at_temperature(logits, self.test.temperature))
        logits = np.log(np.maximum(probabilities, SMALLEST_KEPT, dtype=np.float64))
        found = at_temperature(logits, self.test.temperature)
        known = self.test.calibration_error_at_temperature
        lost = known is None or abs(calibration(found, labels).error - known) > OFF
        return None if lost else Answers(labels, found)

    @property
    def epochs(self) -> list[EpochRecord]:
        """The epochs with a validation, without a row that was cut off."""
        return [each for each in self.run.records if None not in [getattr(each, metric) for metric in METRICS]]


@dataclass(frozen=True)
class Group:
    """Runs of the same settings on the same images that differ at most in their seed."""

    name: str  # a short name that no other group has
    runs: list[NamedRun]  # at least one

    @cached_property
    def seeds(self) -> list[NamedRun]:
        """One run a seed: the first, because a repeated seed adds no evidence."""
        return list({run.summary.seed: run for run in reversed(self.runs)}.values())[::-1]

    @property
    def several(self) -> bool:
        """Tell if there are several seeds."""
        return len(self.seeds) > 1

    @property
    def alone(self) -> list["Group"]:
        """Each run as a group of its own."""
        return [Group(run.name, [run]) for run in self.runs]

    @property
    def label(self) -> str:
        """The name, with the number of seeds if there are several."""
        return f"{self.name}, n = {len(self.seeds)}" if self.several else self.name

    @property
    def accuracies(self) -> list[float]:
        """The test accuracies, one a seed."""
        return [run.accuracy.value for run in self.seeds]

    @property
    def instrument(self) -> Instrument:
        """The probe if all runs have one; otherwise the metrics measured in training."""
        return "probe" if all(has_probe(run.run.records) for run in self.runs) else "training"

    @cached_property
    def gaps(self) -> list[Gap | None]:
        """The gaps of the last epochs that have one, one a seed, by one instrument."""
        return [last_gap(run.epochs, self.instrument) for run in self.seeds]

    @property
    def probe_accuracies(self) -> list[float | None]:
        """The accuracies on the probe in the epochs of the gaps, one a seed; ``None`` for a run without a probe."""
        pairs = zip(self.seeds, self.gaps, strict=True)
        return [
            next((each.probe_acc for each in run.epochs if gap and each.epoch == gap.epoch), None) for run, gap in pairs
        ]

    @property
    def calibration_errors(self) -> list[float | None]:
        """The calibration errors on the test images, one a seed; ``None`` for a run that has none."""
        return [run.run.calibration_error for run in self.seeds]

    @property
    def calibration(self) -> Calibration | None:
        """The calibration over the test images of all seeds; ``None`` if a run has no ``images.npz``."""
        return _calibration([run.answers for run in self.seeds])

    @property
    def calibration_at_temperature(self) -> Calibration | None:
        """The calibration over all seeds, each at its temperature; ``None`` if a run has none, or no ``images.npz``."""
        return _calibration([run.answers_at_temperature for run in self.seeds])

    @property
    def accuracy(self) -> Estimate:
        """The mean test accuracy over seeds."""
        return mean(self.accuracies)


def shared_instrument(groups: Sequence[Group]) -> Instrument:
    """Return the probe if all runs of the groups have one; otherwise the metrics measured in training."""
    return "probe" if all(group.instrument == "probe" for group in groups) else "training"


def _calibration(answers: Sequence[Answers | None]) -> Calibration | None:
    """Return the calibration over the answers of runs; ``None`` if a run has none."""
    known = [each for each in answers if each is not None]
    if len(known) < len(answers):
        return None
    labels, probabilities = (np.concatenate([each[place] for each in known]) for place in range(2))
    return calibration(probabilities, labels)
