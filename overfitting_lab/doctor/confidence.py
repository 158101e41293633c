"""The rule about over-confidence."""

import math
from collections.abc import Iterator

from overfitting_lab.doctor.diagnosis import Diagnosis, Severity

TOO_SURE = 0.1  # mean confidence above accuracy


def over_confident(confidence: float, accuracy: float, error: float, images: int) -> Iterator[Diagnosis]:
    """Note a mean confidence far above the accuracy, both on validation images and in [0, 1].

    Far above is more than 10 points, and more than three standard deviations of the accuracy. ``error`` is the expected
    calibration error.
    """
    noise = 3 * math.sqrt(accuracy * (1 - accuracy) / images)
    if confidence - accuracy <= max(TOO_SURE, noise):
        return
    yield Diagnosis(
        "over_confident",
        Severity.NOTE,
        "the network is more confident than it is accurate",
        f"mean confidence {confidence:.1%}, accuracy {accuracy:.1%} on {images:,} validation images; expected "
        f"calibration error {error:.3f}",
        "python scripts/export.py RUN --temperature, for calibrated probabilities; more images, or augmentation",
    )
