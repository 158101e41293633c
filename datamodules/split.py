"""Choice of training, validation and probe images, label noise, and their fingerprint."""

import hashlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from datamodules.errors import DataError
from datamodules.sampling import epoch_order
from datamodules.sources import Images


class SizeError(DataError):
    """The training set has too few images. ``fitting`` are sizes that it has enough images for."""

    def __init__(self, message: str, fitting: dict[str, int]) -> None:
        super().__init__(message)
        self.fitting = fitting


@dataclass(frozen=True)
class Split:
    """Division of a data set's training images into training and validation."""

    train_indices: Tensor  # int64 [train_size]
    val_indices: Tensor  # int64 [val_size]
    probe_indices: Tensor  # int64 [min(val_size, train_size)], training images that are evaluated as validation is
    train_labels: Tensor  # int64, of every image in the training set, with label noise
    fingerprint: str  # sha256, in hexadecimal, of the images' identity, both lists of indices, and labels drawn anew


def split_images(
    images: Images,
    kind: Literal["overfit", "full"],  # overfit keeps the set's order, full shuffles it before
    train_size: int | None,  # None takes all that validation leaves
    val_size: int | None,  # None takes a tenth, but at least one
    seed: int,  # of the shuffling and the label noise
    label_noise: float,  # fraction of the training images, in [0, 1], whose label is drawn anew from all classes
    subset: int = 0,  # of the disjoint sets of training and validation images, from 0
) -> Split:
    """Divide a training set: the first images train, the next validate. A pure function of its arguments.

    Subset 1 has the images that follow those of subset 0, and so on.

    Raises:
        SizeError: if the split needs more images than there are.
        DataError: if a subset other than the first needs more images than there are, or no label would be noisy.
    """
    available = len(images.train_labels)
    val_size = max(1, round(available / 10)) if val_size is None else val_size
    train_size = available - val_size if train_size is None else train_size
    if train_size < 1 or train_size + val_size > available:
        wanted = train_size + val_size
        fitting = available * train_size // wanted if train_size > 0 else available - available // 10
        fitting = min(max(1, fitting), available - 1)
        raise SizeError(
            f"{train_size} training and {val_size} validation images were asked for, but {images.name} has "
            f"{available} images to train on",
            {"train_size": fitting, "val_size": available - fitting},
        )
    if (subset + 1) * (train_size + val_size) > available:
        raise DataError(
            f"subset {subset} of {train_size} training and {val_size} validation images ends at image "
            f"{(subset + 1) * (train_size + val_size)}, but {images.name} has {available} images to train on; set a "
            "smaller --data.subset, --data.train_size or --data.val_size"
        )
    order = torch.arange(available) if kind == "overfit" else epoch_order(available, seed, 0)
    order = order[subset * (train_size + val_size) :]
    train, val = order[:train_size], order[train_size : train_size + val_size]
    digest = hashlib.sha256(images.identity.encode())
    for indices in (train, val):
        digest.update(repr(len(indices)).encode())
        digest.update(indices.numpy().tobytes())
    labels = images.train_labels
    if label_noise:
        random = np.random.default_rng((seed, *b"label noise"))
        if not (count := round(label_noise * train_size)):
            raise DataError(
                f"data.label_noise {label_noise} is none of {train_size} training labels; give at least "
                f"{1 / train_size:.2g}, or 0"
            )
        noisy = train[torch.from_numpy(random.permutation(train_size)[:count])]
        labels = labels.clone()
        labels[noisy] = torch.from_numpy(random.integers(len(images.classes), size=count))
        digest.update(labels[train].numpy().tobytes())
    drawn = np.random.default_rng((seed, *b"probe")).permutation(train_size)[:val_size]
    return Split(train, val, train[torch.from_numpy(drawn)], labels, digest.hexdigest())


def choose_test_images(available: int, size: int | None) -> Tensor:
    """Return the indices of ``size`` test images in ascending order, int64 [size]; ``None`` chooses all.

    They are a pure function of the two numbers.
    """
    drawn = np.random.default_rng((*b"test",)).permutation(available)[:size]
    return torch.from_numpy(np.sort(drawn))
