"""CIFAR-10, or anything shaped like it, from a source to normalized batches on the device."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from datamodules.augmentation import (
    principal_components,
    random_colour_shift,
    random_crop_flip,
    random_flip_vertically,
)
from datamodules.errors import DataError, UnreachableError
from datamodules.images import SIZE, normalize, read_image, resize, scale
from datamodules.sampling import Batch, BatchLoader, epoch_order
from datamodules.sources import CIFAR10, SOURCES, Images, Source, Synthetic

Augmentation = Literal["none", "flip_crop", "vgg", "notebook"]
LoadedBatch = tuple[Tensor, Tensor, int, Tensor]


class CIFAR10DataModule(LightningDataModule):
    """CIFAR-10 in memory, split for over-fitting or for training in earnest.

    A batch is one gather of 32x32 uint8 images on the host; it travels as such, and is augmented, resized, scaled and
    normalized as a whole on the device. It reaches the network as ``(images, labels, total, indices)``: float32
    [N, 3, image_size, image_size], int64 [N], the number of images in the whole step over all processes, and each
    image's place in its set, int64 [N].

    Validation and test images are never augmented, and the test set takes no part in fitting.

    Args:
        root: the folder that holds the data; for ``folder`` the folder of ``train`` and ``test`` itself.
        source: ``cifar10`` (the original archive, downloaded where it is not there), ``folder`` (image files under
            ``train/<class>`` and ``test/<class>``) or ``synthetic`` (the stand-in: drawn, not downloaded).
        stand_in: take the stand-in where CIFAR-10 is neither there nor reachable.
        split: ``overfit``: the first 1,000 training images and the next 500 for validation, in the set's order, without
            augmentation; ``full``: a random tenth for validation, the rest for training, with flip and crop.
        train_size: number of training images instead of the split's.
        val_size: number of validation images instead of the split's.
        augment: instead of the split's: ``none``; ``flip_crop``: horizontal flip and a random window of the image
            padded with 4 zeros; ``vgg``: a random window of the rescaled image, horizontal flip and colour shift
            (Simonyan & Zisserman 2014, sec. 3.1); ``notebook``: a random window of the resized image padded with 4
            zeros, horizontal and vertical flip: horses on their heads, kept to be shown.
        label_noise: fraction of the training images, in [0, 1], whose label is drawn anew from all classes, whatever
            the image shows (Zhang et al. 2017, sec. 2.1); those of validation and test stay.
        batch_size: images in a whole optimizer step, divided among the processes.
        image_size: height and width, in pixels, that the network gets.
        mean: of the R, G and B values in [0, 1]; the default is that of CIFAR-10's training images.
        std: the same for the standard deviation.
        seed: of the training images' order and augmentation; none takes the seed of ``seed_everything``.
        split_seed: of the random split; apart from ``seed``, so that runs over several seeds share one split.

    Raises:
        ValueError: if an argument is out of its range.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] = "data",
        source: Literal["cifar10", "folder", "synthetic"] = "cifar10",
        stand_in: bool = False,
        split: Literal["overfit", "full"] = "full",
        train_size: int | None = None,
        val_size: int | None = None,
        augment: Augmentation | None = None,
        label_noise: float = 0.0,
        batch_size: int = 128,
        image_size: int = SIZE,
        mean: tuple[float, float, float] = (0.4914, 0.4822, 0.4465),
        std: tuple[float, float, float] = (0.2470, 0.2435, 0.2616),
        seed: int | None = None,
        split_seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters({**locals(), "root": str(root)}, ignore=["self", "__class__"])
        overfit = split == "overfit"
        self.split = split
        self.augment: Augmentation = augment or ("none" if overfit else "flip_crop")
        self.label_noise = label_noise
        self.batch_size = batch_size
        self.image_size = image_size
        self.mean = mean
        self.std = std
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", 0)) if seed is None else seed
        self.split_seed = split_seed
        self._train_size = 1000 if overfit and train_size is None else train_size
        self._val_size = 500 if overfit and val_size is None else val_size
        self._constants = {"mean": torch.tensor(mean), "std": torch.tensor(std)}
        self._stand_in = stand_in and source == "cifar10"
        self._source: Source = SOURCES[source](Path(root))
        for name, value in {
            "batch_size": batch_size,
            "image_size": image_size,
            "train_size": self._train_size,
            "val_size": self._val_size,
        }.items():
            if value is not None and value < 1:
                raise ValueError(f"data.{name} must be at least 1, not {value}")
        for name, value in {"seed": self.seed, "split_seed": split_seed}.items():
            if not 0 <= value < 2**32:
                raise ValueError(f"data.{name} must be at least 0 and below 2^32, not {value}")
        if not 0 <= label_noise <= 1:
            raise ValueError(f"data.label_noise must be in [0, 1], not {label_noise}")
        if any(value <= 0 for value in std):
            raise ValueError(f"data.std must be three numbers above 0, not {list(std)}")
        if self._train_size is not None:
            self._check_batch_fits(self._train_size)

    @property
    def source(self) -> Source:
        """Where the images come from: the source asked for, or the stand-in where it is used for want of CIFAR-10."""
        if self._stand_in and isinstance(self._source, CIFAR10) and not self._source.present():
            return Synthetic(self._source.root)
        return self._source

    @property
    def source_name(self) -> str:
        """The source's name on the command line."""
        return next(name for name, source in SOURCES.items() if isinstance(self.source, source))

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the labels; known before the data is there."""
        return self.images.classes if hasattr(self, "images") else self.source.classes

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    def share_of_batch(self, world_size: int) -> int:
        """Images of a step that each of ``world_size`` processes takes.

        Raises:
            ValueError: if they do not divide.
        """
        if self.batch_size % world_size:
            raise ValueError(
                f"data.batch_size is that of the whole step, over all processes: {self.batch_size} cannot be divided "
                f"among {world_size}; try --data.batch_size {world_size * max(1, round(self.batch_size / world_size))}"
            )
        return self.batch_size // world_size

    def _check_batch_fits(self, train_size: int) -> None:
        if self.batch_size > train_size:
            raise ValueError(
                f"data.batch_size {self.batch_size} is larger than the {train_size} training images; "
                f"try --data.batch_size {min(128, train_size)}"
            )

    def prepare_data(self) -> None:
        """Downloads, decodes or draws the images where that has not been done.

        Raises:
            DataError: if they cannot be had.
        """
        if hasattr(self, "images"):  # the test that follows training asks again
            return
        try:
            self._source.prepare()
        except UnreachableError as error:
            if not self._stand_in:
                raise DataError(
                    f"CIFAR-10 is not in {self._source.root} and could not be downloaded: {error}\n"
                    "Three ways on:\n"
                    f"  1. lay cifar-10-python.tar.gz in {self._source.root}, from wherever you can get it;\n"
                    "  2. use your own images: --data.source folder --data.root FOLDER "
                    "(with train/<class>/* and test/<class>/*);\n"
                    "  3. use the stand-in, drawn images that need no download: --data.source synthetic"
                ) from error
            self.source.prepare()

    def setup(self, stage: str) -> None:
        """Maps the images into memory and splits them.

        Raises:
            DataError: if the split or a batch needs more images than there are, or processes see different data.
        """
        # Decided once: CIFAR-10 that comes while a run on the stand-in is under way must not replace it.
        self._source, self._stand_in = self.source, False
        self.images: Images = self._source.load()
        available = len(self.images.train_labels)
        val_size = round(available / 10) if self._val_size is None else self._val_size
        train_size = available - val_size if self._train_size is None else self._train_size
        if train_size < 1 or train_size + val_size > available:
            raise DataError(
                f"{train_size} training and {val_size} validation images were asked for, but {self.images.name} has "
                f"{available} images to train on; set --data.train_size and --data.val_size"
            )
        try:
            self._check_batch_fits(train_size)
        except ValueError as error:
            raise DataError(str(error)) from error
        order = torch.arange(available) if self.split == "overfit" else epoch_order(available, self.split_seed, 0)
        self.train_indices, self.val_indices = order[:train_size], order[train_size : train_size + val_size]
        self.test_indices = torch.arange(len(self.images.test_labels))
        if self.label_noise:
            self.images = replace(self.images, train_labels=self._noisy_labels(self.images.train_labels))
        if self.augment == "vgg":
            key = hashlib.sha256(self.images.identity.encode() + self.train_indices.numpy().tobytes()).hexdigest()
            self._constants["components"] = self._source.kept(
                f"components-{key[:16]}", lambda: principal_components(self.images.train_images[self.train_indices])
            )
        self._check_processes_agree()

    def _noisy_labels(self, labels: Tensor) -> Tensor:
        """The labels [M], some of the training split's drawn anew: a pure function of ``split_seed``."""
        random = np.random.default_rng((self.split_seed, *b"label noise"))
        count = round(self.label_noise * len(self.train_indices))
        noisy = labels.clone()
        picked = self.train_indices[torch.from_numpy(random.permutation(len(self.train_indices))[:count])]
        noisy[picked] = torch.from_numpy(random.integers(self.num_classes, size=count))
        return noisy

    def _check_processes_agree(self) -> None:
        if self.trainer is not None and self.trainer.strategy.broadcast(self.fingerprint) != self.fingerprint:
            raise DataError(
                f"process {self.trainer.global_rank} has other data or another split than process 0; "
                "give every machine the same data"
            )

    @property
    def fingerprint(self) -> str:
        """sha256, in hexadecimal, of the images' identity, the training and validation split, and labels drawn anew."""
        digest = hashlib.sha256(self.images.identity.encode())
        for indices in (self.train_indices, self.val_indices):
            digest.update(repr(len(indices)).encode())
            digest.update(indices.numpy().tobytes())
        if self.label_noise:
            digest.update(self.images.train_labels[self.train_indices].numpy().tobytes())
        return digest.hexdigest()

    def description(self) -> dict[str, Any]:
        """What the data is, in plain values."""
        return {
            "source": self.source_name,
            "name": self.images.name,
            "identity": self.images.identity,
            "fingerprint": self.fingerprint,
            "split": self.split,
            "train_size": len(self.train_indices),
            "val_size": len(self.val_indices),
            "test_size": len(self.test_indices),
            "augment": self.augment,
            "label_noise": self.label_noise,
            "classes": list(self.images.classes),
        }

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of the data: the names of the classes and the split's fingerprint."""
        return {"classes": list(self.classes), "fingerprint": self.fingerprint}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refuses other classes, and to go on training with other data.

        Raises:
            DataError: if the checkpoint's classes are others, or it was trained on another split.
        """
        if self.trainer is None:
            return  # read for its settings alone, wherever the images are now
        if tuple(state_dict["classes"]) != self.classes:
            raise DataError(
                f"the checkpoint tells apart {', '.join(state_dict['classes'])}; "
                f"the data here has {', '.join(self.classes)}"
            )
        if self.trainer.state.fn != TrainerFn.FITTING:
            return  # a trained network may be tested on any images
        if state_dict["fingerprint"] != self.fingerprint:
            raise DataError(
                f"the checkpoint was trained on other data or another split: its fingerprint is "
                f"{state_dict['fingerprint'][:12]}, that of the data here is {self.fingerprint[:12]}"
            )

    def _loader(self, split: Literal["train", "test"], indices: Tensor, *, shuffle: bool = False) -> BatchLoader:
        assert self.trainer is not None
        trainer = self.trainer
        self.share_of_batch(trainer.world_size)
        return BatchLoader(
            getattr(self.images, f"{split}_images"),
            getattr(self.images, f"{split}_labels"),
            indices,
            batch_size=self.batch_size,
            rank=trainer.global_rank,
            world_size=trainer.world_size,
            epoch=lambda: trainer.current_epoch,
            seed=self.seed if shuffle else None,
        )

    def train_dataloader(self) -> BatchLoader:
        """Training images, in an order of each epoch's own."""
        return self._loader("train", self.train_indices, shuffle=True)

    def val_dataloader(self) -> BatchLoader:
        """Validation images, in the split's order."""
        return self._loader("train", self.val_indices)

    def test_dataloader(self) -> BatchLoader:
        """Test images, in the set's order."""
        return self._loader("test", self.test_indices)

    def on_after_batch_transfer(self, batch: Batch | Tensor, dataloader_idx: int) -> LoadedBatch | Tensor:
        """Augments (training images alone), resizes, scales and normalizes a whole batch on the device."""
        assert self.trainer is not None
        if isinstance(batch, Tensor):  # the example input, which Lightning's model summary sends through here
            return batch
        images = batch.images.permute(0, 3, 1, 2)
        images = self.augmented(images, batch.indices) if self.trainer.training else self.as_evaluated(images)
        return self.normalized(images), batch.labels, batch.total, batch.indices

    def augmented(self, images: Tensor, indices: Tensor) -> Tensor:
        """Training images as the running epoch augments them.

        Args:
            images: uint8 [N, 3, 32, 32].
            indices: int64 [N], each image's place in its set.

        Returns:
            float32 [N, 3, image_size, image_size], values of about [0, 1].
        """
        assert self.trainer is not None
        draws = (self.seed, self.trainer.current_epoch, indices)
        if self.augment == "vgg":
            images = random_crop_flip(resize(scale(images), self._rescaled), *draws, size=self.image_size)
            return random_colour_shift(images, *draws, self._constant("components", images.device))
        if self.augment == "notebook":
            images = resize(scale(images), self.image_size)
            return random_flip_vertically(random_crop_flip(images, *draws, size=self.image_size, padding=4), *draws)
        if self.augment == "flip_crop":
            images = random_crop_flip(images, *draws, size=SIZE, padding=4)
        return resize(scale(images), self.image_size)

    def as_evaluated(self, images: Tensor) -> Tensor:
        """Images as validation and test take them: float32 [N, 3, image_size, image_size] of uint8 [N, 3, 32, 32]."""
        if self.augment != "vgg":
            return resize(scale(images), self.image_size)
        margin = (self._rescaled - self.image_size) // 2
        window = slice(margin, margin + self.image_size)
        return resize(scale(images), self._rescaled)[:, :, window, window]

    @staticmethod
    def read(paths: Sequence[Path]) -> Tensor:
        """Image files as uint8 [N, 3, 32, 32].

        Raises:
            DataError: if one cannot be read.
        """
        return torch.from_numpy(np.stack([read_image(path) for path in paths])).permute(0, 3, 1, 2)

    def normalized(self, images: Tensor) -> Tensor:
        """Normalizes float images [N, 3, H, W] with values in [0, 1]."""
        return normalize(images, self._constant("mean", images.device), self._constant("std", images.device))

    @property
    def _rescaled(self) -> int:
        """The side to which ``vgg`` resizes before it cuts a window: 256 for 224, as in the paper (sec. 3.1)."""
        return round(self.image_size * 256 / 224)

    def _constant(self, name: str, device: torch.device) -> Tensor:
        """A constant on the device that it is used on; copied there once."""
        constant = self._constants[name] = self._constants[name].to(device)
        return constant
