"""Rules about the images and labels, before any training."""

import math
from collections.abc import Iterator
from hashlib import sha256

import torch
import torch.nn.functional as F
from scipy.special import chdtrc
from torch import Tensor

from overfitting_lab.doctor.diagnosis import Diagnosis, Severity

LEAK = 0.01  # share of the validation or test images
IMBALANCE = 3  # ratio of the largest class to the smallest
FEW = 200  # with fewer images, an accuracy shows nothing
PROBED = 5000  # the linear probe uses at most so many images
SAME = 3  # levels of 255: images that differ by no more in any pixel show the same
BLACK = 16  # of 255: an image without a value as high as this looks black
MANY = 0.01  # share of the training images
UNLIKELY = 1e-6  # probability below which no random split explains the classes


def duplicates(known: Tensor, asked: Tensor) -> int:
    """Count the images asked about that are, pixel for pixel, known ones. Both are uint8 [N, height, width, 3]."""

    def digests(images: Tensor) -> list[bytes]:
        return [sha256(image.tobytes()).digest() for image in images.numpy()]

    train = set(digests(known))
    return sum(digest in train for digest in digests(asked))


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


def duplicate_images(number: int, size: int, *, test: bool = False) -> Iterator[Diagnosis]:
    """Report validation or test images that are training images too: a warning if more than a hundredth are, or a note.

    ``number`` of ``size`` images are.
    """
    if not number:
        return
    split, leak = "test" if test else "validation", number > LEAK * size
    yield Diagnosis(
        "duplicate_test_images" if test else "duplicate_images",
        Severity.WARNING if leak else Severity.NOTE,
        f"{split} images are training images too" + f", so the {split} accuracy is no measure" * leak,
        f"{number:,} of {size:,} {split} images ({number / size:.1%}) are pixel for pixel training images",
        "remove the copies from the folder" + "; another --data.split_seed splits the images anew" * (not test)
        if leak
        else "none needed: so few hardly change the accuracy",
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


def images_show_nothing(images: Tensor, train: Tensor) -> Iterator[Diagnosis]:
    """Report training images that are all alike, nearly black, or of one colour.

    ``images`` are uint8 [N, height, width, 3], ``train`` indices, int64.
    """
    if len(train) > 1 and _alike(images, train):
        yield Diagnosis(
            "images_alike",
            Severity.FATAL,
            "all training images show the same, so that there is nothing to learn from them",
            f"no pixel differs by more than {SAME} of 255 levels between any two of {len(train):,} images",
            "look at the images: a failed download or conversion leaves such images",
        )
    # One row of each image rules out most images cheaply.
    middle = images[train, images.shape[1] // 2]
    dark = train[middle.flatten(1).amax(1) < BLACK]
    plain = train[(middle == middle[:, :1]).flatten(1).all(1)]
    black = sum(int((images[part].flatten(1).amax(1) < BLACK).sum()) for part in torch.split(dark, PROBED))
    alone = sum(_of_one_colour(images[part]) for part in torch.split(plain, PROBED))
    for code, number, what, remedy in (
        (
            "images_black",
            black,
            f"are nearly black: no value reaches {BLACK} of 255",
            "look at them: files of 16 bits look black if their values use 12 bits or fewer; multiply the values, or "
            "convert the files to 8 bits",
        ),
        (
            "images_of_one_colour",
            alone,
            "are of one colour, and not black",
            "look at them, and remove what a failed download or conversion left",
        ),
    ):
        if number:
            yield Diagnosis(
                code,
                Severity.WARNING if number > MANY * len(train) else Severity.NOTE,
                f"training images {what}",
                f"{number:,} of {len(train):,} training images ({number / len(train):.1%})",
                remedy,
            )


def class_without_images(labels: Tensor, names: tuple[str, ...]) -> Iterator[Diagnosis]:
    """Report classes without a training image, if other classes have some. ``labels`` are the training images'."""
    counts = torch.bincount(labels, minlength=len(names)).tolist()
    missing = [name for name, count in zip(names, counts, strict=True) if not count]
    if not missing or len(missing) >= len(names) - 1:
        return
    yield Diagnosis(
        "class_without_images",
        Severity.WARNING,
        "some classes have no training images, so the network never learns them",
        f"none of {len(labels):,} training images is of {', '.join(missing[:10])}" + ", ..." * (len(missing) > 10),
        "add images to the folders of these classes, or remove the folders; --data.split full draws images from all "
        "classes, --data.split overfit uses the first",
    )


def validation_unlike_training(train: Tensor, val: Tensor, names: tuple[str, ...]) -> Iterator[Diagnosis]:
    """Report validation images whose classes are distributed otherwise than a random split explains.

    ``train`` and ``val`` are labels, int64 [N] in [0, classes). The test is Pearson's chi-squared test of homogeneity.
    """
    counts = torch.stack([torch.bincount(labels, minlength=len(names)) for labels in (train, val)])
    there = counts[:, counts.sum(dim=0) > 0].double()
    if not len(val) or there.shape[1] < 2:
        return
    expected = there.sum(dim=1, keepdim=True) * there.sum(dim=0) / there.sum()
    if chdtrc(there.shape[1] - 1, float(((there - expected) ** 2 / expected).sum())) > UNLIKELY:
        return
    shares = counts / counts.sum(dim=1, keepdim=True)
    worst = int((shares[0] - shares[1]).abs().argmax())
    yield Diagnosis(
        "validation_unlike_training",
        Severity.WARNING,
        "the classes of the validation images are not those of the training images, so their accuracies do not compare",
        f"{names[worst]} is {shares[0, worst]:.0%} of {len(train):,} training images and {shares[1, worst]:.0%} of "
        f"{len(val):,} validation images",
        "--data.split full, which draws from all images (--data.split overfit takes the first images in the order of "
        "their file names)",
    )


def _alike(images: Tensor, train: Tensor) -> bool:
    low = high = images[train[0]].short()
    for part in torch.split(train, 1000):
        chunk = images[part]
        low, high = torch.minimum(low, chunk.amin(0).short()), torch.maximum(high, chunk.amax(0).short())
        if int((high - low).max()) > SAME:
            return False
    return True


def _of_one_colour(images: Tensor) -> int:
    """Count the images of one colour that are not black."""
    one = (images == images[:, :1, :1]).flatten(1).all(1)
    return int((one & (images.flatten(1).amax(1) >= BLACK)).sum())
