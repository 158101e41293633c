"""An ensemble: several networks that answer together, by the mean of their probabilities."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from overfitting_lab.comparison.statistics import Estimate, wilson
from overfitting_lab.runs import Run, RunError
from overfitting_lab.runs.calibration import Calibration, calibration


class Answers(NamedTuple):
    """A network's answers for test images."""

    labels: NDArray[np.integer]  # [N], true classes
    probabilities: NDArray[np.floating]  # [N, classes]
    identity: str | None = None  # sha256 of the data set; runs of earlier versions lack it


@dataclass(frozen=True)
class Ensemble:
    """Runs whose probabilities for each test image are averaged (Lakshminarayanan et al. 2017, sec. 2.4)."""

    name: str
    labels: NDArray[np.integer]  # [N], true classes of the test images
    members: NDArray[np.floating]  # [members, N, classes], probabilities; at least two members

    @cached_property
    def probabilities(self) -> NDArray[np.float64]:
        """The mean probabilities, [N, classes]."""
        return np.asarray(self.members.mean(axis=0, dtype=np.float64))

    @cached_property
    def accuracy(self) -> Estimate:
        """The test accuracy with Wilson's interval."""
        return wilson(int((self.probabilities.argmax(axis=1) == self.labels).sum()), len(self.labels))

    @cached_property
    def accuracies(self) -> list[float]:
        """The test accuracy of each member alone."""
        return [float((answers == self.labels).mean()) for answers in self._answers]

    @cached_property
    def calibration(self) -> Calibration:
        """The calibration of the mean probabilities."""
        return calibration(self.probabilities, self.labels)

    @cached_property
    def agreement(self) -> float:
        """The fraction of test images on which two members agree, mean over all pairs of members."""
        return float(np.mean([(one == other).mean() for one, other in combinations(self._answers, 2)]))

    @property
    def sentence(self) -> str:
        """A sentence about the accuracy of the members together and alone."""
        return (
            f"{self.name}, answering by the mean of their probabilities: test accuracy {self.accuracy.in_percent()}, "
            f"calibration error {self.calibration.error:.3f}; alone they reach {np.mean(self.accuracies):.1%} on "
            f"average and {max(self.accuracies):.1%} at best. Two of them agree on {self.agreement:.0%} of the images."
        )

    @property
    def _answers(self) -> NDArray[np.intp]:
        return np.asarray(self.members.argmax(axis=2))


def ensemble(name: str, runs: Sequence[Run], answers: Sequence[Answers] | None = None) -> Ensemble:
    """Return the ensemble of at least two runs that were tested on the same images.

    ``answers`` are each run's. By default they come from its ``images.npz``.

    Raises:
        RunError: if a run kept no probabilities, was tested on other images or classes than the first, or is a copy.
    """
    check_members(runs)
    answers = [_kept(run) for run in runs] if answers is None else answers
    first, images = runs[0], answers[0]
    for run, its in zip(runs, answers, strict=True):
        other = None not in (its.identity, images.identity) and its.identity != images.identity
        if other or not np.array_equal(its.labels, images.labels):
            raise _other_images(run, first)
    for (one, its), (another, others) in combinations(zip(runs, answers, strict=True), 2):
        if one.summary.seed == another.summary.seed and np.array_equal(its.probabilities, others.probabilities):
            raise RunError(f"{another.folder} has the same answers as {one.folder}: a copy adds nothing; leave it out")
    return Ensemble(name, images.labels, np.stack([each.probabilities for each in answers]))


def check_members(runs: Sequence[Run]) -> None:
    """Check what can be known of an ensemble's runs before they are tested.

    Raises:
        RunError: if there are fewer than two, or one is given twice or tells other classes apart than the first.
    """
    if len(runs) < 2:
        raise RunError("an ensemble needs at least two runs: name another one")
    if len({run.folder.resolve() for run in runs}) < len(runs):
        raise RunError("an ensemble has each run once, and one is given twice")
    for run in runs:
        if run.summary.data.classes != runs[0].summary.data.classes:
            raise _other_images(run, runs[0])


def _other_images(run: Run, first: Run) -> RunError:
    return RunError(f"{run.folder} was tested on other images than {first.folder}: name runs with the same data")


def _kept(run: Run) -> Answers:
    if run.test_probabilities is None:
        raise RunError(
            f"{run.files.images} has no probabilities of test images; instead, use python scripts/test.py RUN RUN"
        )
    return Answers(run.images["test_labels"], run.test_probabilities, run.summary.data.identity)
