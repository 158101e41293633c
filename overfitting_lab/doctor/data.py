"""Rules about the images and labels, before any training."""

import math
from collections.abc import Iterator
from hashlib import sha256

import torch
import torch.nn.functional as F
from torch import Tensor

from overfitting_lab.doctor.diagnosis import Diagnosis, Severity

LEAK = 0.01  # share of the validation images
IMBALANCE = 3  # ratio of the largest class to the smallest
FEW = 200  # with fewer images, an accuracy shows nothing
PROBED = 5000  # the linear probe uses at most so many images


def duplicates(images: Tensor, train: Tensor, val: Tensor) -> int:
    """Count the validation images that are, pixel for pixel, training images.

    ``images`` are uint8 [N, height, width, 3]. ``train`` and ``val`` are int64, indices of images.
    """
    pixels = images.numpy()
    known = {sha256(pixels[index].tobytes()).digest() for index in train.tolist()}
    return sum(sha256(pixels[index].tobytes()).digest() in known for index in val.tolist())


def chance(labels: Tensor, classes: int) -> float:
    """Return the loss in nats of naming each class as often as it occurs: ln(classes) if all are equally frequent."""
    shares = torch.bincount(labels, minlength=classes).double() / max(1, len(labels))
    return max(0.0, float(-torch.special.xlogy(shares, shares).sum()))  # not -0.0 for a single class


def labels_fit(images: Tensor, labels: Tensor, train: Tensor, val: Tensor, classes: int) -> bool | None:
    """Tell if a linear classifier on 8x8 pixels beats chance, so that the labels fit; ``None`` with too few images.

    It beats chance if its validation accuracy is three standard deviations above always naming the largest class.
    ``images`` are uint8 [N, 32, 32, 3], ``labels`` int64 [N] in [0, classes). The first 5,000 ``train`` indices, int64,
    are fitted, the first 5,000 of ``val`` classified.
    """
    train, val = train[:PROBED], val[:PROBED]
    if min(len(train), len(val)) < FEW:
        return None

    pixels = images[torch.cat([train, val])].permute(0, 3, 1, 2).float() / 255
    features = F.avg_pool2d(pixels, images.shape[1] // 8).flatten(1).double()
    features = F.pad(features - features[: len(train)].mean(dim=0), (0, 1), value=1.0)
    known, asked = features[: len(train)], features[len(train) :]
    targets = F.one_hot(labels[train], classes).double()
    normal = known.T @ known + 1e-2 * len(train) * torch.eye(known.shape[1], dtype=torch.float64)
    predicted = (asked @ torch.linalg.solve(normal, known.T @ targets)).argmax(dim=1)
    accuracy = float((predicted == labels[val]).double().mean())
    share = float(torch.bincount(labels[val]).max()) / len(val)
    return accuracy > share + 3 * math.sqrt(share * (1 - share) / len(val))


def duplicate_images(number: int, val_size: int) -> Iterator[Diagnosis]:
    """Report validation images that are training images too: a warning if more than a hundredth are, else a note."""
    if not number:
        return
    leak = number > LEAK * val_size
    yield Diagnosis(
        "duplicate_images",
        Severity.WARNING if leak else Severity.NOTE,
        "validation images are training images too" + ", so the validation accuracy is no measure" * leak,
        f"{number:,} of {val_size:,} validation images ({number / val_size:.1%}) are pixel for pixel training images",
        "remove the copies from the folder; another --data.split_seed splits the images anew"
        if leak
        else "nothing: so few hardly change the accuracy",
    )


def class_imbalance(labels: Tensor, names: tuple[str, ...]) -> Iterator[Diagnosis]:
    """Report training images of a single class, or of classes whose sizes differ by more than a random draw explains.

    ``labels`` are the training images', int64 [N] in [0, classes).
    """
    counts = torch.bincount(labels, minlength=len(names))
    if len(names) > 1 and (counts > 0).sum() == 1:
        yield Diagnosis(
            "single_class",
            Severity.FATAL,
            "all training images are of one class, so that there is nothing to tell apart",
            f"{len(labels):,} of {names[int(counts.argmax())]}, none of the other {len(names) - 1}",
            "--data.split full, which draws from all classes (--data.split overfit takes the first images in the order "
            "of their file names, which may be sorted by class), or more images in the folders of the other classes",
        )
        return
    mean = len(labels) / len(names)
    far = float((counts - mean).abs().max()) > 4 * math.sqrt(mean)
    if not far or counts.max() < IMBALANCE * counts.min():
        return
    most, least = int(counts.argmax()), int(counts.argmin())
    yield Diagnosis(
        "class_imbalance",
        Severity.WARNING,
        "some classes have many more training images than others",
        f"{int(counts[most]):,} of {names[most]}, {int(counts[least]):,} of {names[least]}: always naming "
        f"{names[most]} is right for {int(counts[most]) / len(labels):.0%}",
        "balance the folders; --data.split full draws images from all of them, --data.split overfit uses the first; "
        "read the confusion matrix (tensorboard --logdir lightning_logs) before the accuracy",
    )
