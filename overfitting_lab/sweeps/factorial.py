"""Numbers of an ablation: effects of the remedies against over-fitting, and their worth in training images."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any

import numpy as np
from scipy import stats
from scipy.optimize import isotonic_regression

from overfitting_lab.comparison.statistics import CONFIDENCE, Estimate
from overfitting_lab.sweeps.trial import Trial

REMEDIES: dict[str, tuple[Any, Any]] = {
    "dropout": (0.0, 0.5),
    "weight_decay": (0.0, 1e-4),
    "augment": ("none", "flip_crop"),
}


@dataclass(frozen=True)
class Effect:
    """The effect of one remedy on a response, or the interaction of several (Montgomery 2017, sec. 6.2)."""

    # of one remedy, estimate is the mean effect over all settings of the others; of two, it is half the
    # difference between one's effect with and without the other
    remedies: tuple[str, ...]
    estimate: Estimate  # a fraction of 1, with Student's interval from the spread of seeds within the cells


def cells() -> Iterator[dict[str, Any]]:
    """Yield the settings of the full factorial. The first one has all remedies off."""
    for levels in product(*REMEDIES.values()):
        yield dict(zip(REMEDIES, levels, strict=True))


def remedies_of(setting: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the remedies that are on in a setting."""
    return tuple(name for name, (_, on) in REMEDIES.items() if setting[name] == on)


def effects(trials: Sequence[Trial], response: str) -> list[Effect]:
    """Return main effects and interactions of the full factorial, by least squares on contrasts of -1 and 1.

    ``response`` names a number of :class:`Trial`.

    Raises:
        ValueError: if a cell has no trial.
    """
    missing = [setting for setting in cells() if not any(trial.has(setting) for trial in trials)]
    if missing:
        raise ValueError(f"no trial has {missing[0]}")
    terms = [term for size in range(len(REMEDIES) + 1) for term in combinations(REMEDIES, size)]
    signs = [{name: 1 if name in remedies_of(trial.setting) else -1 for name in REMEDIES} for trial in trials]
    design = np.array([[np.prod([sign[name] for name in term]) for term in terms] for sign in signs], dtype=float)
    values = np.array([getattr(trial, response) for trial in trials])
    inverse = np.linalg.inv(design.T @ design)
    coefficients = inverse @ design.T @ values
    freedom = len(trials) - len(terms)
    half = np.full(len(terms), np.nan)
    if freedom:
        variance = float(((values - design @ coefficients) ** 2).sum() / freedom)
        half = stats.t.ppf((1 + CONFIDENCE) / 2, freedom) * np.sqrt(variance * inverse.diagonal())
    return [
        Effect(term, Estimate(2 * value, 2 * (value - width), 2 * (value + width)))
        for term, value, width in zip(terms, coefficients.tolist(), half.tolist(), strict=True)
        if term
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
