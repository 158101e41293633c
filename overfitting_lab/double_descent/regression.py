"""Regression on random features of images, with fewer and with more features than images.

A feature is a random projection of the pixels, cut at zero: a network of one hidden layer whose first weights stay as
they were drawn (Rahimi & Recht 2007; Belkin et al. 2019; Mei & Montanari 2022). Only the outputs' weights are fitted,
by least squares. All arithmetic is in float64: with as many features as images, the solution can magnify an error of
rounding a million times.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from datamodules import CIFAR10DataModule
from overfitting_lab.runs import UsageError

SIZES = (
    0.05,
    0.1,
    0.2,
    0.3,
    0.5,
    0.7,
    0.8,
    0.9,
    0.95,
    0.98,
    1,
    1.02,
    1.05,
    1.1,
    1.2,
    1.5,
    2,
    3,
    5,
    10,
)  # features, by images
FEWEST = round(1 / min(SIZES))  # images
MOST = 5000  # images: the largest matrix of features takes up 2 GB, and the time grows with the third power
CHUNK = 1000  # images whose features are in memory at once


@dataclass(frozen=True)
class Point:
    """One regression: its setting and its results.

    An error is the squared distance between outputs and one-hot targets, summed over classes, its mean over images. An
    accuracy is a fraction of 1. The training images have the labels that they were fitted with.
    """

    seed: int
    features: int
    label_noise: float
    ridge: float
    train_error: float
    train_acc: float
    test_error: float
    test_acc: float


def check_number(images: int) -> None:
    """Check that least squares suit a number of training images.

    Raises:
        UsageError: if there are too few for a curve, or too many for the memory.
    """
    if not FEWEST <= images <= MOST:
        raise UsageError(
            f"{images} training images do not suit least squares with up to ten times as many features: "
            f"give --data.train_size {FEWEST} to {MOST}"
        )


def measure(data: CIFAR10DataModule, seed: int, ridge: float) -> Iterator[Point]:
    """Fit the features that a seed draws, for each number of features, and yield the results.

    Every number of features is fitted with the true labels and with the labels of ``data``, if it has label noise. Each
    is fitted without a ridge and with it. The features of a seed are nested: the smaller numbers are the first ones.
    """
    images = data.images
    train, test = images.train_images[data.train_indices], images.test_images[data.test_indices]
    labels = {0.0: data.true_labels[data.train_indices]}
    labels[data.label_noise] = images.train_labels[data.train_indices]
    new_labels = images.test_labels[data.test_indices]
    curves = [(noise, penalty) for penalty in (0.0, ridge) for noise in labels]
    targets = torch.cat([one_hot(each, data.num_classes) for each in labels.values()], 1)

    projection = draw_projection(data, max(sizes(len(train))), seed)
    features = random_features(data, train, projection)
    weights = {size: torch.cat(solve(scaled(features, size), targets, (0.0, ridge)), 1) for size in sizes(len(train))}
    for size, fitted, predicted in zip(
        weights, outputs(data, train, projection, weights), outputs(data, test, projection, weights), strict=True
    ):
        own_and_new = (torch.split(each, data.num_classes, 1) for each in (fitted, predicted))
        for (noise, penalty), own, new in zip(curves, *own_and_new, strict=True):
            results = *score(own, labels[noise]), *score(new, new_labels)
            yield Point(seed, size, noise, penalty, *results)


def sizes(images: int) -> list[int]:
    """Return the numbers of features for a number of training images, in ascending order."""
    return sorted({max(1, round(size * images)) for size in SIZES})


def draw_projection(data: CIFAR10DataModule, features: int, seed: int) -> Tensor:
    """Draw a standard normal weight of each pixel for each feature, over the root of the number of pixel values."""
    pixels = 3 * data.image_size**2
    random = torch.Generator().manual_seed(seed)
    return torch.randn(features, pixels, generator=random, dtype=torch.float64).div_(pixels**0.5)


def random_features(data: CIFAR10DataModule, images: Tensor, projection: Tensor) -> Tensor:
    """Return the features [features, N] of uint8 images [N, 32, 32, 3]; see :func:`scaled`."""
    pixels = data.network_input(images.permute(0, 3, 1, 2)).flatten(1).double()
    return (projection @ pixels.T).relu_()


def scaled(features: Tensor, size: int) -> Tensor:
    """Return the first ``size`` of features [features, N], scaled.

    The squared length of an image's scaled features is about the mean square of its normalized pixels, near 1, for any
    number of features. So a ridge means the same for all of them.
    """
    return features[:size].mul((2 / size) ** 0.5)


def solve(features: Tensor, targets: Tensor, ridges: Sequence[float]) -> list[Tensor]:
    """Return the weights [features, outputs] of the least squares for each ridge.

    They minimize the squared error, summed over images, plus the ridge times the squared length of the weights. With a
    ridge of 0, they are the shortest of all weights that minimize the squared error.

    Args:
        features: float64 [features, N].
        targets: float64 [N, outputs].
        ridges: at least 0.
    """
    left, values, right = torch.linalg.svd(features, full_matrices=False)
    smallest = values.max() * max(features.shape) * torch.finfo(values.dtype).eps  # of values that are not rounding
    kept = values > smallest
    left, values, projected = left[:, kept], values[kept, None], right[kept] @ targets
    return [left @ (values / (values.square() + ridge) * projected) for ridge in ridges]


def outputs(
    data: CIFAR10DataModule, images: Tensor, projection: Tensor, weights: dict[int, Tensor]
) -> Iterator[Tensor]:
    """Yield the outputs [N, outputs] of each number of features, by its weights [features, outputs]."""
    chunks = []
    for chunk in torch.split(images, CHUNK):
        features = random_features(data, chunk, projection)
        chunks.append([scaled(features, size).T @ fitted for size, fitted in weights.items()])
    yield from map(torch.cat, zip(*chunks, strict=True))


def one_hot(labels: Tensor, classes: int) -> Tensor:
    """Return targets, float64 [N, classes]."""
    return F.one_hot(labels, classes).double()


def score(outputs: Tensor, labels: Tensor) -> tuple[float, float]:
    """Return error and accuracy of outputs [N, classes]; see :class:`Point`."""
    error = (outputs - one_hot(labels, outputs.shape[1])).square().sum(1).mean()
    return error.item(), (outputs.argmax(1) == labels).double().mean().item()
