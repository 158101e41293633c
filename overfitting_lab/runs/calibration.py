"""Measure the agreement of a network's confidence with its accuracy (Guo et al. 2017)."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

BINS = 15  # of equal width, over confidences in [0, 1]
COLDEST, HOTTEST = 0.01, 100.0  # temperatures that are tried


@dataclass(frozen=True)
class Calibration:
    """Confidence against accuracy. The confidence is a prediction's largest probability."""

    confidence: float  # mean, in [0, 1]
    error: float  # expected calibration error over 15 bins, in [0, 1] (Guo et al. 2017, sec. 2)
    counts: NDArray[np.int64]  # predictions in each bin [15]
    confidences: NDArray[np.float64]  # mean confidence in each bin [15]; NaN in an empty bin
    accuracies: NDArray[np.float64]  # fraction of right predictions in each bin [15]; NaN in an empty bin


def calibration(probabilities: NDArray[np.floating], labels: NDArray[np.integer]) -> Calibration:
    """Measure the calibration of predictions.

    Args:
        probabilities: [N, classes], in [0, 1], N at least 1.
        labels: [N], the true classes.
    """
    probabilities = probabilities.astype(np.float32)
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == labels
    places = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)  # a bin holds its upper end
    counts = np.bincount(places, minlength=BINS)
    with np.errstate(invalid="ignore"):  # 0 / 0 in an empty bin
        confidences, accuracies = (np.bincount(places, each, BINS) / counts for each in (confidence, right))
    error = np.nansum(counts * np.abs(confidences - accuracies)) / len(labels)
    return Calibration(float(confidence.mean()), float(error), counts, confidences, accuracies)


def best_temperature(logits: NDArray[np.floating], labels: NDArray[np.integer]) -> float | None:
    """Return the temperature, in [0.01, 100], by which logits must be divided to minimize the cross-entropy.

    See Guo et al. 2017, sec. 4.2. The predicted classes stay the same. ``None`` if the loss has no minimum in this
    range: if all predictions are right, a lower temperature is always better; if most are wrong, a higher one is.

    Args:
        logits: [N, classes], N at least 1.
        labels: [N], the true classes.
    """
    logits = logits.astype(np.float64)
    if (logits.argmax(axis=1) == labels).all():
        return None

    def loss(log_temperature: float) -> float:
        scores = log_softmax(logits / np.exp(log_temperature), axis=1)
        return float(-scores[np.arange(len(labels)), labels].mean())

    found = minimize_scalar(loss, bounds=np.log([COLDEST, HOTTEST]), method="bounded", options={"xatol": 1e-6})
    temperature = float(np.exp(found.x))
    return temperature if 1.01 * COLDEST < temperature < HOTTEST / 1.01 else None


def at_temperature(logits: NDArray[np.floating], temperature: float) -> NDArray[np.float64]:
    """Return the probabilities [N, classes] of logits [N, classes] that are divided by a temperature."""
    return np.asarray(softmax(logits.astype(np.float64) / temperature, axis=1))
