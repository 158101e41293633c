"""Effects of factors on a response, with confidence intervals, and the worth of a method in training images."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

from overfitting_lab.comparison.statistics import Estimate, clipped, mean, student, welch_difference
from overfitting_lab.sweeps.designs import Cell, Design, Term
from overfitting_lab.sweeps.trial import Trial

ROUNDING = 1e-12  # a standard error below is that of equal values


@dataclass(frozen=True)
class Effect:
    """The effect of a factor of two levels on a response, or the interaction of several (Montgomery 2017, sec. 6.2).

    The effect of one factor is the mean over all settings of the other factors. The interaction of two factors is half
    the difference between the effect of one at the second level of the other, and its effect at the first level.
    """

    terms: Sequence[Term]  # several if the design cannot separate them; the estimate is then their sum
    estimate: Estimate  # a fraction of 1

    @property
    def main(self) -> bool:
        """True if it is the effect of one factor."""
        return len(self.terms[0]) == 1


class CellMeans:
    """Means of a response in the cells of a design, and estimates of their differences.

    With one set of training images, intervals are Student's, from the spread of seeds within the cells. With several
    sets, the seeds of each cell and set are averaged. The intervals then come from how much the differences between
    cells vary from set to set: the sets are blocks (randomized complete block design; Montgomery 2017, sec. 4.1).

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
        """Variance of each cell's mean, without the variation that all cells of a set share."""
        means = self._table.mean(axis=1, keepdims=True)
        if self._sets > 1:
            residuals = self._table - means - self._table.mean(axis=0) + self._table.mean()
            return np.full(self._cells, (residuals**2).sum() / self.freedom / self._sets)
        runs = [np.array(sets[0]) for sets in self._values]
        squares = sum(float(((seeds - seeds.mean()) ** 2).sum()) for seeds in runs)
        return squares / self.freedom / np.array([len(seeds) for seeds in runs])

    def contrast(self, weights: Sequence[float]) -> Estimate:
        """Estimate a weighted sum of the cells' means, with weights whose sum is 0.

        It has no interval if nothing varies: one seed, or equal results of all seeds.
        """
        return self._weighted(weights)

    def _weighted(self, weights: Sequence[float]) -> Estimate:
        value = float(weights @ self._table.mean(axis=1))
        error = float(np.sqrt(np.square(weights) @ self._variances)) if self.freedom else 0.0
        if error < ROUNDING:
            return Estimate(value)
        return student(value, error, self.freedom)

    def mean(self, weights: Sequence[float]) -> Estimate:
        """Estimate a weighted mean of the cells' means, with weights whose sum is 1."""
        if self._sets == 1:
            return clipped(self._weighted(weights), self._least)
        return mean(list(weights @ self._table), least=self._least)

    def replicates(self, cell: int) -> list[float]:
        """Return the independent values of a cell: one for each seed, or the mean of each of several sets."""
        return self._values[cell][0] if self._sets == 1 else self._table[cell].tolist()

    def cell_mean(self, cell: int) -> Estimate:
        """Estimate the mean of one cell from its own replicates."""
        return mean(self.replicates(cell), least=self._least)

    def against_first(self, cell: int) -> Estimate:
        """Estimate the difference between a cell and the first one, by blocks or, with one set, by Welch (1947)."""
        if self._sets > 1:
            weights = np.zeros(self._cells)
            weights[[0, cell]] = -1, 1
            return self.contrast(weights.tolist())
        first, other = self.replicates(0), self.replicates(cell)
        if min(len(first), len(other)) < 2:
            return Estimate(float(np.mean(other) - np.mean(first)))
        return welch_difference(other, first).points


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
