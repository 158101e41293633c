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


def mean(fractions: Sequence[float]) -> Estimate:
    """The mean of fractions of 1 with Student's interval, cut at 0 and 1; without one where there is a single value."""
    array = np.asarray(fractions, dtype=float)
    if len(array) < 2:
        return Estimate(float(array.mean()))
    half = stats.t.ppf((1 + CONFIDENCE) / 2, len(array) - 1) * stats.sem(array)
    return _cut(array.mean(), array.mean() - half, array.mean() + half, 0, 1)


def _cut(value: float, low: float, high: float, least: float, most: float) -> Estimate:
    return Estimate(float(value), max(float(low), least), min(float(high), most))


@dataclass(frozen=True)
class Difference:
    """How much higher one accuracy is than another.

    Attributes:
        points: first minus second, as a fraction of 1, with its interval.
        p: the probability of a difference as large where there is none, two-sided; NaN where it cannot be told.
        test: the name of the test that gave it.
        over_seeds: whether it says how far other seeds would be apart, and not other test images.
    """

    points: Estimate
    p: float
    test: str
    over_seeds: bool


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
    points = _cut((gained - lost) / images, middle - half, middle + half, -1, 1)
    return Difference(points, p, "McNemar, exact", over_seeds=False)


def unpaired_difference(first: Estimate, second: Estimate, images: int) -> Difference:
    """The difference of two accuracies of which the answers to single images are not known.

    The hybrid score interval of Newcombe (1998), method 10, and Fisher's exact test: wider than what the same images
    would give.

    Args:
        first: with Wilson's interval.
        second: likewise.
        images: number of images of each.
    """
    value = first.value - second.value
    low = value - np.hypot(first.value - first.low, second.high - second.value)
    high = value + np.hypot(first.high - first.value, second.value - second.low)
    right = [round(one.value * images) for one in (first, second)]
    p = float(stats.fisher_exact([[one, images - one] for one in right]).pvalue)
    return Difference(_cut(value, low, high, -1, 1), p, "Fisher, exact", over_seeds=False)


def welch_difference(first: Sequence[float], second: Sequence[float]) -> Difference:
    """The difference of two means over seeds, by the test of Welch (1947).

    Args:
        first: one accuracy a seed, at least two.
        second: the same of the other runs.
    """
    if np.ptp(first) == np.ptp(second) == 0:
        points = Estimate(first[0] - second[0])
        return Difference(points, float("nan"), "none, for want of spread over seeds", over_seeds=True)
    result = stats.ttest_ind(first, second, equal_var=False)
    interval = result.confidence_interval(CONFIDENCE)
    points = _cut(float(np.mean(first) - np.mean(second)), interval.low, interval.high, -1, 1)
    return Difference(points, float(result.pvalue), "Welch, over seeds", over_seeds=True)
