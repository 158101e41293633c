"""How sure a number is: intervals and tests, each with its source."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A number and its 95 % confidence interval.

    Attributes:
        value: the estimate.
        low: lower end of the interval; NaN where there is no telling.
        high: upper end.
    """

    value: float
    low: float = float("nan")
    high: float = float("nan")

    @property
    def known(self) -> bool:
        """Whether there is an interval."""
        return bool(np.isfinite(self.low) and np.isfinite(self.high))

    @property
    def beyond_noise(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.known and not self.low <= 0 <= self.high

    def in_points(self) -> str:
        """A difference of fractions in hundredths, with its sign and, where there is one, its interval."""
        interval = f" ({100 * self.low:+.1f} to {100 * self.high:+.1f})" if self.known else ""
        return f"{100 * self.value:+.1f}{interval}"


def wilson(right: int, images: int) -> Estimate:
    """An accuracy with the score interval of Wilson (1927): what other test images of the same kind would give.

    Args:
        right: number of images named right.
        images: number of images, at least 1.
    """
    interval = stats.binomtest(right, images).proportion_ci(CONFIDENCE, method="wilson")
    return Estimate(right / images, float(interval.low), float(interval.high))


def mean(values: Sequence[float]) -> Estimate:
    """A mean with Student's interval; without one where there is a single value."""
    array = np.asarray(values, dtype=float)
    if len(array) < 2:
        return Estimate(float(array.mean()))
    half = stats.t.ppf((1 + CONFIDENCE) / 2, len(array) - 1) * stats.sem(array)
    return Estimate(float(array.mean()), float(array.mean() - half), float(array.mean() + half))


@dataclass(frozen=True)
class Difference:
    """How much higher one accuracy is than another.

    Attributes:
        points: first minus second, as a fraction of 1, with its interval.
        p: the probability of a difference as large where there is none, two-sided.
        test: the name of the test that gave it.
    """

    points: Estimate
    p: float
    test: str


def paired_difference(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> Difference:
    """The difference of two accuracies on the same images.

    The exact form of McNemar's test (1947), which asks only the images that one network names right and the other
    wrong; the interval is Wald's for paired proportions with the correction of Agresti & Min (2005). It is about the
    images alone: how far another seed would move either network, it does not say.

    Args:
        first: bool [N], which images the first network names right.
        second: the same for the second, in the same order.
    """
    gained, lost, images = int((first & ~second).sum()), int((second & ~first).sum()), len(first)
    p = float(stats.binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0
    b, c, n = gained + 0.5, lost + 0.5, images + 2
    half = stats.norm.ppf((1 + CONFIDENCE) / 2) * np.sqrt(b + c - (b - c) ** 2 / n) / n
    middle = (b - c) / n
    return Difference(
        Estimate((gained - lost) / images, float(middle - half), float(middle + half)), p, "McNemar, exact"
    )


def welch_difference(first: Sequence[float], second: Sequence[float]) -> Difference:
    """The difference of two means over seeds, by the test of Welch (1947).

    Args:
        first: one accuracy a seed, at least two.
        second: the same of the other runs.
    """
    if np.ptp(first) == np.ptp(second) == 0:  # no spread to judge by
        return Difference(Estimate(first[0] - second[0]), 1.0, "none: no spread over seeds")
    result = stats.ttest_ind(first, second, equal_var=False)
    interval = result.confidence_interval(CONFIDENCE)
    points = Estimate(float(np.mean(first) - np.mean(second)), float(interval.low), float(interval.high))
    return Difference(points, float(result.pvalue), "Welch, over seeds")
