"""Effects of factors on a response, with confidence intervals, and the worth of a method in training images."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.optimize import isotonic_regression

from overfitting_lab.comparison.statistics import CONFIDENCE, Estimate, mean, welch_difference
from overfitting_lab.sweeps.designs import Cell, Design, Term
from overfitting_lab.sweeps.trial import Trial


@dataclass(frozen=True)
class Effect:
    """The effect of a factor of two levels on a response, or the interaction of several (Montgomery 2017, sec. 6.2)."""

    # of one factor, estimate is the mean effect over all settings of the others; of two, it is half the
    # difference between one's effect at the second level of the other and at the first
    terms: Sequence[Term]  # several if the design cannot separate them: then the estimate is their sum
    estimate: Estimate  # a fraction of 1

    @property
    def main(self) -> bool:
        """True if it is the effect of one factor."""
        return len(self.terms[0]) == 1


class CellMeans:
    """Means of a response in the cells of a design, and estimates of their differences.

    With one set of training images, intervals are Student's, from the spread of seeds within the cells. With several
    sets, the seeds of a cell and a set are averaged, and the sets are blocks: intervals come from the variation, from
    set to set, of the differences between cells (randomized complete block design; Montgomery 2017, sec. 4.1).

    Args:
        groups: the trials of each cell.
        response: a number of :class:`Trial`.
    """

    def __init__(self, groups: Sequence[Sequence[Trial]], response: str) -> None:
        subsets = sorted({trial.subset for group in groups for trial in group})
        self._values = [
            [[getattr(trial, response) for trial in group if trial.subset == subset] for subset in subsets]
            for group in groups
        ]
        self._table = np.array([[np.mean(seeds) for seeds in sets] for sets in self._values])  # [cells, sets]
        self._cells, self._sets = self._table.shape
        self._least = -1.0 if response == "gap" else 0.0

    @cached_property
    def freedom(self) -> int:
        """Degrees of freedom of a contrast's interval."""
        if self._sets > 1:
            return int((self._cells - 1) * (self._sets - 1))
        return sum(len(sets[0]) for sets in self._values) - len(self._values)

    @cached_property
    def _variances(self) -> NDArray[np.float64]:
        """Variance of each cell's mean, apart from what all cells of a set have in common."""
        means = self._table.mean(axis=1, keepdims=True)
        if self._sets > 1:
            residuals = self._table - means - self._table.mean(axis=0) + self._table.mean()
            return np.full(self._cells, (residuals**2).sum() / self.freedom / self._sets)
        runs = [np.array(sets[0]) for sets in self._values]
        squares = sum(float(((seeds - seeds.mean()) ** 2).sum()) for seeds in runs)
        return squares / self.freedom / np.array([len(seeds) for seeds in runs])

    def contrast(self, weights: Sequence[float]) -> Estimate:
        """Estimate a weighted sum of the cells' means, with weights whose sum is 0."""
        value = float(weights @ self._table.mean(axis=1))
        if not self.freedom:
            return Estimate(value)
        return _student(value, float(np.sqrt(np.square(weights) @ self._variances)), self.freedom)

    def mean(self, weights: Sequence[float]) -> Estimate:
        """Estimate a weighted mean of the cells' means, with weights whose sum is 1."""
        if self._sets == 1:
            return self.contrast(weights)
        return mean(list(weights @ self._table), least=self._least)

    def replicates(self, cell: int) -> list[float]:
        """Return the independent values of a cell: one a seed, or with several sets of images, the mean of each."""
        return self._values[cell][0] if self._sets == 1 else self._table[cell].tolist()

    def cell_mean(self, cell: int) -> Estimate:
        """Estimate the mean of one cell from its own replicates."""
        return mean(self.replicates(cell), least=self._least)

    def against_first(self, cell: int) -> Estimate:
        """Estimate the difference between a cell and the first one: by Welch (1947), with several sets by blocks."""
        if self._sets > 1:
            weights = np.zeros(self._cells)
            weights[[0, cell]] = -1, 1
            return self.contrast(weights.tolist())
        first, other = self.replicates(0), self.replicates(cell)
        if min(len(first), len(other)) < 2:
            return Estimate(float(np.mean(other) - np.mean(first)))
        return welch_difference(other, first).points


def _student(value: float, error: float, freedom: int) -> Estimate:
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom)) * error
    return Estimate(value, value - half, value + half)


def trials_of(cell: Cell, trials: Sequence[Trial]) -> list[Trial]:
    """Return the trials of a cell, of all seeds and subsets."""
    return [trial for trial in trials if trial.has(cell)]


def by_cell(design: Design, trials: Sequence[Trial]) -> list[list[Trial]]:
    """Return the trials of each cell of a design.

    Raises:
        ValueError: if a cell has none.
    """
    groups = [trials_of(cell, trials) for cell in design.cells]
    if not all(groups):
        raise ValueError(f"no trial has {design.cells[groups.index([])]}")
    return groups


def effects(design: Design, trials: Sequence[Trial], response: str) -> list[Effect]:
    """Return main effects and interactions of factors of two levels. ``response`` names a number of :class:`Trial`.

    Raises:
        ValueError: if a cell has no trial.
    """
    means = CellMeans(by_cell(design, trials), response)
    half = len(design.cells) / 2
    return [
        Effect(terms, means.contrast([sign / half for sign in design.signs(terms[0])])) for terms in design.aliases()
    ]


def images_for(accuracy: float, sizes: Sequence[int], accuracies: Sequence[float]) -> float:
    """Return the number of training images with which a network without remedies reaches an accuracy.

    It is read from the learning curve, made monotone, and interpolated on a logarithmic scale of the ascending sizes.
    It is NaN below the curve and infinity above it.
    """
    curve = isotonic_regression(accuracies).x
    if accuracy < curve[0]:
        return float("nan")
    if accuracy > curve[-1]:
        return float("inf")
    reached = int(np.searchsorted(curve, accuracy))  # the smallest size with that accuracy or more
    if curve[reached] == accuracy:
        return float(sizes[reached])
    around = slice(reached - 1, reached + 1)
    return float(np.exp(np.interp(accuracy, curve[around], np.log(sizes[around]))))
