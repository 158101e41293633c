"""What the images and labels say before any training."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from overfitting_lab.doctor.diagnosis import Diagnosis, Severity

LEAK = 0.01  # share of the validation images
IMBALANCE = 3  # images of the largest class to those of the smallest
FEW = 200  # images, below which a share tells nothing
PROBED = 5000  # images that the linear probe learns from, at most


def duplicates(images: Tensor, train: Tensor, val: Tensor) -> int:
    """How many validation images are, pixel for pixel, among the training images.

    Args:
        images: uint8 [N, height, width, 3].
        train: int64 [n], indices of the training images.
        val: int64 [m], indices of the validation images.
    """
    pixels: NDArray[Any] = images.numpy().reshape(len(images), -1)
    digests = _digests(pixels)
    digest_train, digest_val = digests[train.numpy()], digests[val.numpy()]
    order = np.argsort(digest_train, kind="stable")
    place = np.searchsorted(digest_train, digest_val, sorter=order).clip(max=len(order) - 1)
    partner = train.numpy()[order[place]]
    likely = np.flatnonzero(digests[partner] == digest_val)
    return sum(bool((pixels[partner[one]] == pixels[val.numpy()[one]]).all()) for one in likely)


def _digests(pixels: NDArray[Any]) -> NDArray[np.uint64]:
    """64 bits of each row: its product, modulo 2^64, with odd random numbers."""
    padded = -pixels.shape[1] % 8
    numbers = np.random.default_rng(0).integers(2**63, size=(pixels.shape[1] + padded) // 8, dtype=np.uint64) * 2 + 1
    parts = []
    for chunk in np.array_split(pixels, max(1, len(pixels) // 4096)):
        words = np.ascontiguousarray(np.pad(chunk, ((0, 0), (0, padded)))).view(np.uint64)
        parts.append(words @ numbers)
    return np.concatenate(parts)


def chance(labels: Tensor, classes: int) -> float:
    """The loss in nats of guessing each class as often as it occurs: ln(classes) where they are equally frequent."""
    shares = torch.bincount(labels, minlength=classes).double() / max(1, len(labels))
    return float(-torch.special.xlogy(shares, shares).sum())


def linear_accuracy(images: Tensor, labels: Tensor, train: Tensor, val: Tensor, classes: int) -> float | None:
    """Accuracy on validation images of the best straight line through 8x8 pixels; none of too few images.

    It knows nothing of a network: where it beats guessing, labels and images belong together.

    Args:
        images: uint8 [N, 32, 32, 3].
        labels: int64 [N], in [0, classes).
        train: int64 [n], indices to learn from; the first 5,000 are taken.
        val: int64 [m], indices to be tested on; the first 5,000 are taken.
        classes: number of classes.
    """
    train, val = train[:PROBED], val[:PROBED]
    if min(len(train), len(val)) < FEW:
        return None

    def features(indices: Tensor) -> Tensor:
        small = F.avg_pool2d(images[indices].permute(0, 3, 1, 2).float() / 255, images.shape[1] // 8)
        return F.pad(small.flatten(1), (0, 1), value=1.0).double()

    known, asked = features(train), features(val)
    mean = known.mean(dim=0)
    mean[-1] = 0
    known, asked = known - mean, asked - mean
    targets = F.one_hot(labels[train], classes).double()
    normal = known.T @ known + 1e-2 * len(train) * torch.eye(known.shape[1], dtype=torch.float64)
    guessed = (asked @ torch.linalg.solve(normal, known.T @ targets)).argmax(dim=1)
    return float((guessed == labels[val]).double().mean())


def beats_guessing(accuracy: float, labels: Tensor, classes: int) -> bool:
    """Whether an accuracy on those labels is three standard deviations above that of always naming one class."""
    share = float(torch.bincount(labels, minlength=classes).max()) / len(labels)
    return accuracy > share + 3 * math.sqrt(share * (1 - share) / len(labels))


def duplicate_images(number: int, val_size: int) -> Iterator[Diagnosis]:
    """Validation images that are training images too: a warning above a hundredth, else a note."""
    if not number:
        return
    leak = number > LEAK * val_size
    yield Diagnosis(
        "duplicate_images",
        Severity.WARNING if leak else Severity.NOTE,
        "validation images are training images too" + (", so that its accuracy is no measure" if leak else ""),
        f"{number:,} of {val_size:,} validation images ({number / val_size:.1%}) are pixel for pixel training images",
        "take the copies out of the folder; another --data.split_seed divides the images anew"
        if leak
        else "nothing: so few hardly move the accuracy",
    )


def class_imbalance(labels: Tensor, names: tuple[str, ...]) -> Iterator[Diagnosis]:
    """Classes of very different size among the training labels, more than a random draw makes them."""
    counts = torch.bincount(labels, minlength=len(names))
    mean = len(labels) / len(names)
    far = float((counts - mean).abs().max()) > 4 * math.sqrt(mean)
    if not far or counts.max() < IMBALANCE * counts.min():
        return
    most, least = int(counts.argmax()), int(counts.argmin())
    yield Diagnosis(
        "class_imbalance",
        Severity.WARNING,
        "some classes have many more training images than others",
        f"{int(counts[most]):,} of {names[most]}, {int(counts[least]):,} of {names[least]}: always saying "
        f"{names[most]} is right for {int(counts[most]) / len(labels):.0%}",
        "balance the folders; --data.split full draws the images from all of them, --data.split overfit takes the "
        "first; read the confusion matrix (tensorboard --logdir lightning_logs) before the accuracy",
    )
