"""An ensemble: several networks that answer together, by the mean of their probabilities."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from overfitting_lab.comparison.statistics import Estimate, wilson
from overfitting_lab.runs import Run, RunError
from overfitting_lab.runs.calibration import Calibration, calibration


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
    def _answers(self) -> NDArray[np.intp]:
        return np.asarray(self.members.argmax(axis=2))


def ensemble(name: str, runs: Sequence[Run]) -> Ensemble:
    """Return the ensemble of at least two runs that were tested on the same images.

    Raises:
        RunError: if a run kept no probabilities, or was tested on other images or classes than the first.
    """
    if len(runs) < 2:
        raise RunError(f"an ensemble needs at least two runs; {name} is one")
    for run in runs:
        if "test_probabilities" not in run.images:
            raise RunError(f"{run.files.images} has no probabilities of test images: {run.folder} cannot join others")
        same = np.array_equal(run.images["test_labels"], runs[0].images["test_labels"])
        if not same or run.summary.data.classes != runs[0].summary.data.classes:
            raise RunError(f"{run.folder} was tested on other images than {runs[0].folder}; they cannot be averaged")
    members = np.stack([run.images["test_probabilities"] for run in runs])
    return Ensemble(name, runs[0].images["test_labels"], members)
