"""Confidence intervals and tests, each with its source."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A number and its 95 % confidence interval."""

    value: float  # the estimate
    low: float = float("nan")  # lower end of the interval; NaN if it is unknown
    high: float = float("nan")  # upper end of the interval; NaN if it is unknown

    @property
    def known(self) -> bool:
        """True if there is an interval."""
        return bool(np.isfinite(self.low) and np.isfinite(self.high))

    @property
    def beyond_noise(self) -> bool:
        """True if the interval excludes 0."""
        return self.known and not self.low <= 0 <= self.high

    def in_percent(self) -> str:
        """Return a fraction of 1 in per cent, with its interval if it has one."""
        interval = f" ({self.low:.1%} to {self.high:.1%})" if self.known else ""
        return f"{self.value:.1%}{interval}"

    def in_points(self) -> str:
        """Return a difference of fractions in hundredths, with its sign and, if known, its interval."""
        interval = f" ({100 * self.low:+.1f} to {100 * self.high:+.1f})" if self.known else ""
        return f"{100 * self.value:+.1f}{interval}"


def wilson(right: int, images: int) -> Estimate:
    """Return the accuracy if ``right`` of ``images`` (at least 1) are correct, with its Wilson interval (1927).

    The interval covers the variation from the choice of test images.
    """
    interval = stats.binomtest(right, images).proportion_ci(CONFIDENCE, method="wilson")
    return Estimate(right / images, float(interval.low), float(interval.high))


def student(value: float, error: float, freedom: float) -> Estimate:
    """Return a value with Student's interval, from its standard error and the degrees of freedom of the error."""
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom)) * error
    return Estimate(value, value - half, value + half)


def mean(values: Sequence[float], least: float = 0.0, most: float = 1.0) -> Estimate:
    """Return the mean of values with Student's interval, clipped to [least, most].

    A single value, or equal values, have no interval: they show no variation.
    """
    array = np.asarray(values, dtype=float)
    if not np.ptp(array):
        return Estimate(float(array.mean()))
    return clipped(student(float(array.mean()), float(stats.sem(array)), len(array) - 1), least, most)


def mean_cell(values: Sequence[float | None], scale: float = 100, digits: int = 1, unit: str = "") -> str:
    """Return the mean of values times ``scale``, of several with their standard deviation: ``42.3 ± 0.6``.

    The text is empty if a value is missing.
    """
    known = scale * np.array([value for value in values if value is not None])
    if not values or len(known) < len(values):
        return ""
    return f"{known.mean():.{digits}f}{f' ± {known.std(ddof=1):.{digits}f}' if len(known) > 1 else ''}{unit}"


def clipped(estimate: Estimate, least: float, most: float = 1.0) -> Estimate:
    """Return an estimate whose interval, if it has one, ends within [least, most]."""
    return Estimate(estimate.value, max(estimate.low, least), min(estimate.high, most)) if estimate.known else estimate


@dataclass(frozen=True)
class Difference:
    """The difference of two accuracies."""

    points: Estimate  # first minus second, as a fraction of 1, with its interval
    p: float  # two-sided p-value; NaN if it is unknown
    test: str  # name of the test
    over_seeds: bool  # whether interval and p-value are about other seeds, instead of other test images


def paired_difference(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> Difference:
    """Compare two accuracies on the same images.

    The test is the exact form of McNemar's (1947), which counts only the images that one network alone classifies
    correctly. The interval is Wald's for paired proportions with the correction of Agresti & Min (2005). Both are about
    the images, not about other seeds.

    Args:
        first: bool [N], whether the first network is right about each image.
        second: bool [N], whether the second network is, in the same order.
    """
    gained, lost, images = int((first & ~second).sum()), int((second & ~first).sum()), len(first)
    p = float(stats.binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0
    b, c, n = gained + 0.5, lost + 0.5, images + 2
    half = stats.norm.ppf((1 + CONFIDENCE) / 2) * np.sqrt(b + c - (b - c) ** 2 / n) / n
    middle = (b - c) / n
    points = clipped(Estimate((gained - lost) / images, float(middle - half), float(middle + half)), -1)
    return Difference(points, p, "McNemar, exact", over_seeds=False)


def unpaired_difference(first: Estimate, second: Estimate, images: int) -> Difference:
    """Compare two accuracies, each on ``images`` images and with Wilson's interval, without the single answers.

    The interval is Newcombe's hybrid score interval (1998, method 10), and the test is Fisher's exact test. Paired
    answers would give a narrower interval.
    """
    value = first.value - second.value
    low = value - np.hypot(first.value - first.low, second.high - second.value)
    high = value + np.hypot(first.high - first.value, second.value - second.low)
    right = [round(one.value * images) for one in (first, second)]
    p = float(stats.fisher_exact([[one, images - one] for one in right]).pvalue)
    return Difference(clipped(Estimate(value, float(low), float(high)), -1), p, "Fisher, exact", over_seeds=False)


def welch_difference(first: Sequence[float], second: Sequence[float], bound: float = 1.0) -> Difference:
    """Compare two means over seeds, at least two values each, by Welch's test (1947).

    The interval is clipped to [-bound, bound].
    """
    if np.ptp(first) == np.ptp(second) == 0:
        points = Estimate(first[0] - second[0])
        return Difference(points, float("nan"), "none, because the seeds do not differ", over_seeds=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Precision loss")  # one of the two does not vary at all
        result = stats.ttest_ind(first, second, equal_var=False)
    interval = result.confidence_interval(CONFIDENCE)
    value = float(np.mean(first) - np.mean(second))
    points = clipped(Estimate(value, float(interval.low), float(interval.high)), -bound, bound)
    return Difference(points, float(result.pvalue), "Welch, over seeds", over_seeds=True)
