"""The data module: a source's images as normalized batches on the device."""

import math
import os
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from datamodules.augmentation import AUGMENTATIONS, Augmentation, Cutout
from datamodules.batch import Batch, to_network
from datamodules.errors import DataError, UnreachableError
from datamodules.images import SIZE
from datamodules.mixing import epoch_mixtures, mix
from datamodules.sampling import BatchLoader, epoch_draws
from datamodules.sources import SOURCES, Images, Source, Synthetic
from datamodules.split import SizeError, Split, choose_test_images, split_images


class CIFAR10DataModule(LightningDataModule):
    """CIFAR-10 in memory, split for over-fitting or for training in earnest.

    A :class:`Batch` reaches the device as uint8, and is augmented, resized, scaled and normalized there as a whole.
    Validation and test images are never augmented, and the test set takes no part in fitting.

    Args:
        root: folder that holds the data; for ``folder`` the parent of ``train`` and ``test``.
        source: ``cifar10`` (the original archive, downloaded if it is missing), ``folder`` (image files under
            ``train/<class>`` and ``test/<class>``) or ``synthetic`` (the stand-in: drawn, not downloaded).
        stand_in: use the stand-in if CIFAR-10 is neither there nor reachable.
        split: ``overfit``: the first 1,000 training images and the next 500 for validation, in the set's order, without
            augmentation; ``full``: a random tenth for validation, the rest for training, with flip and crop.
        train_size: number of training images instead of the split's.
        val_size: number of validation images instead of the split's.
        test_size: number of test images instead of all, for short trials. They are drawn once, independently of the
            seeds, so that the same number means the same images.
        subset: which of the disjoint sets of training and validation images, from 0. In the split ``overfit``, subset 1
            has the images that follow subset 0. In ``full``, it has the next images of the random order.
        augment: instead of the split's: ``none``; ``flip_crop``: horizontal flip and a random window of the image
            padded with 4 zeros; ``trivial``: as ``flip_crop``, then one of 14 operations, such as a shear or a
            brighter image, at one of 31 strengths, both drawn for each image (Müller & Hutter 2021, sec. 3: the wide
            variant); ``vgg``: a random window of the rescaled image, horizontal flip and colour shift
            (Simonyan & Zisserman 2014, sec. 3.1); ``notebook``: a random window of the resized image padded with 4
            zeros, horizontal and vertical flip: horses on their heads, kept to be shown.
        cutout: side of a square, in pixels of the network's image, that is set to the mean colour in each training
            image, after any ``augment`` (DeVries & Taylor 2017, sec. 3; 16 of 32 pixels for CIFAR-10 in sec. 4). It is
            centred on any pixel, so that it may reach over the border. 0 switches it off.
        mixup: alpha of mixup (Zhang et al. 2018, sec. 2). Each training image is added to another one, and its label
            counts by its share. The share is drawn from Beta(alpha, alpha). 0 switches mixup off.
        cutmix: alpha of CutMix (Yun et al. 2019, sec. 3.1). A box of each training image shows another image there, and
            its label counts by the share of pixels outside the box. 0 switches CutMix off. With mixup too, each image
            gets one of the two with probability 1/2. In both, the image's own share is at least one half, so that its
            own label stays the right prediction: a lambda below one half is replaced by 1 - lambda. In mixup, this
            changes nothing overall, because each image is also the smaller part of one other mixture in an epoch.
            CutMix loses the boxes that cover more than half of the image.
        label_noise: fraction of the training images, in [0, 1], whose label is drawn anew from all classes, whatever
            the image shows (Zhang et al. 2017, sec. 2.1); labels of validation and test stay.
        batch_size: images of a batch, divided among the processes. A step has ``accumulate_grad_batches`` batches.
        image_size: height and width, in pixels, of the network's images.
        mean: of the R, G and B values in [0, 1]; the default is the mean of CIFAR-10's training images.
        std: of the R, G and B values in [0, 1]; the default is the deviation of CIFAR-10's training images.
        seed: of the training images' order and augmentation; ``None`` uses the seed of ``seed_everything``.
        split_seed: of the random split, the label noise and the probe. It is separate from ``seed``, so that runs with
            several seeds share one split.
        probe_every: number of epochs from one evaluation of the probe to the next. The first validation always
            evaluates it, and so does the last epoch's, unless a callback ends the run earlier. If an epoch is not
            validated, the next validation evaluates it. The probe has as many training images as there are validation
            images. They are drawn once and evaluated in the same way as validation images. 0 switches the probe off.
        on_device: keep all images on the device, so that no step copies any; the batches are the same. The default
            keeps them there on a single GPU of NVIDIA or AMD if they take up a tenth of its memory at most. With
            several GPUs, ``true`` gives each GPU a copy of them. On a CPU it changes nothing.

    Raises:
        ValueError: if an argument is out of its range.
    """

    # From setup() on:
    images: Images  # with label noise
    true_labels: Tensor  # int64, of every image in the training set, without label noise
    train_indices: Tensor  # int64 [train_size], indices in the training set
    val_indices: Tensor  # int64 [val_size], indices in the training set
    probe_indices: Tensor  # int64 [min(val_size, train_size)], indices in the training set
    test_indices: Tensor  # int64 [test_size], indices in the test set, in ascending order
    fingerprint: str  # see Split

    def __init__(
        self,
        root: str = "data",
        source: Literal["cifar10", "folder", "synthetic"] = "cifar10",
        stand_in: bool = False,
        split: Literal["overfit", "full"] = "full",
        train_size: int | None = None,
        val_size: int | None = None,
        test_size: int | None = None,
        subset: int = 0,
        augment: Literal["none", "flip_crop", "trivial", "vgg", "notebook"] | None = None,
        cutout: int = 0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        label_noise: float = 0.0,
        batch_size: int = 128,
        image_size: int = SIZE,
        mean: tuple[float, float, float] = (0.4914, 0.4822, 0.4465),
        std: tuple[float, float, float] = (0.2470, 0.2435, 0.2616),
        seed: int | None = None,
        split_seed: int = 0,
        probe_every: int = 4,
        on_device: bool | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters({**locals(), "root": str(root)}, ignore=["self", "__class__"], logger=False)
        overfit = split == "overfit"
        self.split = split
        self.subset = subset
        self.augment = augment or ("none" if overfit else "flip_crop")
        self.cutout = cutout
        self.mixup = mixup
        self.cutmix = cutmix
        self.label_noise = label_noise
        self.batch_size = batch_size
        self.image_size = image_size
        self.mean = mean
        self.std = std
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", 0)) if seed is None else seed
        self.split_seed = split_seed
        self.probe_every = probe_every
        self.on_device = on_device
        # The split's sizes if none are given; None takes what the images allow.
        self.train_size = 1000 if overfit and train_size is None else train_size
        self.val_size = 500 if overfit and val_size is None else val_size
        self._test_size = test_size
        self._stand_in = stand_in
        self._source: Source = SOURCES[source](Path(root))
        sizes = {
            "batch_size": batch_size, "image_size": image_size,
            "train_size": train_size, "val_size": val_size, "test_size": test_size,
        }  # fmt: skip
        small = {name: size for name, size in sizes.items() if size is not None and size < 1}
        if small:
            raise ValueError("; ".join(f"data.{name} must be at least 1, not {size}" for name, size in small.items()))
        for name, value in {"seed": self.seed, "split_seed": split_seed}.items():
            if not 0 <= value < 2**32:
                raise ValueError(f"data.{name} must be at least 0 and below 2^32, not {value}")
        for name, value in {"probe_every": probe_every, "subset": subset}.items():
            if value < 0:
                raise ValueError(f"data.{name} must be at least 0, not {value}")
        if not 0 <= cutout <= image_size:
            raise ValueError(
                f"data.cutout must be at least 0 and at most data.image_size, {image_size}, not {cutout}: "
                "it is the side of a square in the network's image"
            )
        for name, alpha in {"mixup": mixup, "cutmix": cutmix}.items():
            if not 0 <= alpha < math.inf:
                raise ValueError(
                    f"data.{name} must be 0, which switches it off, or a finite alpha above 0, not {alpha}"
                )
        if not 0 <= label_noise <= 1:
            raise ValueError(f"data.label_noise must be in [0, 1], not {label_noise}")
        units = "; divide those of pixels from 0 to 255 by 255"
        if not all(0 <= value <= 1 for value in mean):
            raise ValueError(f"data.mean must be three numbers in [0, 1], not {list(mean)}{units}")
        if not all(0 < value <= 1 for value in std):
            raise ValueError(f"data.std must be three numbers in (0, 1], not {list(std)}{units}")
        if self.train_size is not None and batch_size > self.train_size:
            message, fitting = self._batch_too_large(self.train_size)
            raise ValueError(f"{message}; try --data.batch_size {fitting}")
        self.augmentation: Augmentation = AUGMENTATIONS[self.augment](image_size)
        if cutout:
            self.augmentation = Cutout(self.augmentation, cutout, mean)
        self._mean_std = torch.tensor([mean, std])
        self._probed = -1  # the epoch of the probe's last evaluation
        self._placed: dict[str, tuple[Tensor, Tensor]] = {}  # images and labels that batches are gathered from

    @property
    def source(self) -> Source:
        """Source of the images: the one asked for, or the stand-in if it replaces CIFAR-10."""
        return Synthetic(self._source.root) if self._stand_in and not self._source.present() else self._source

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the labels; known before the data is there."""
        return self.images.classes if hasattr(self, "images") else self.source.classes

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    def share_of_batch(self, world_size: int) -> int:
        """Return the number of a step's images that each of ``world_size`` processes takes.

        Raises:
            ValueError: if they do not divide.
        """
        if self.batch_size % world_size:
            raise ValueError(
                f"data.batch_size counts the images of the whole step, over all processes: {self.batch_size} cannot be "
                f"divided among {world_size}; "
                f"try --data.batch_size {world_size * max(1, round(self.batch_size / world_size))}"
            )
        return self.batch_size // world_size

    def _batch_too_large(self, train_size: int) -> tuple[str, int]:
        """Return what is wrong with a batch that is larger than the training set, and a batch size that fits."""
        message = f"data.batch_size {self.batch_size} is larger than the {train_size} training images"
        return message, min(128, train_size)

    def _split(self, images: Images) -> Split:
        """Split the images.

        Raises:
            DataError: if sizes do not fit the images. One message names all of them, and sizes that fit.
        """
        wrong: list[str] = []
        fitting: dict[str, int] = {}
        sizes = self.train_size, self.val_size
        split = None
        try:
            split = split_images(images, self.split, *sizes, self.split_seed, self.label_noise, self.subset)
            train_size = len(split.train_indices)
        except SizeError as error:
            wrong.append(str(error))
            fitting |= error.fitting
            train_size = fitting["train_size"]
        if self.batch_size > train_size:
            message, fitting["batch_size"] = self._batch_too_large(train_size)
            wrong.append(message)
        available = len(images.test_labels)
        if self._test_size is not None and self._test_size > available:
            wrong.append(f"{self._test_size} test images were asked for, but {images.name} has {available}")
            fitting["test_size"] = available
        if split is None or wrong:
            remedy = " ".join(f"--data.{name} {size}" for name, size in fitting.items())
            raise DataError(f"{'; '.join(wrong)}; try {remedy}")
        return split

    def prepare_data(self) -> None:
        """Download, decode or draw the images, unless that was done.

        Raises:
            DataError: if they cannot be had.
        """
        if hasattr(self, "images"):  # the test that follows training asks again
            return
        try:
            self._source.prepare()
        except UnreachableError as error:
            missing = f"CIFAR-10 is not in {self._source.root} and could not be downloaded: {error}"
            if not self._stand_in:
                raise DataError(
                    f"{missing}\n"
                    "You can:\n"
                    f"  1. put cifar-10-python.tar.gz into {self._source.root}, from wherever you can get it;\n"
                    "  2. use your own images: --data.source folder --data.root FOLDER "
                    "(with train/<class>/* and test/<class>/*);\n"
                    "  3. use the stand-in, synthetic images that need no download: --data.source synthetic"
                ) from error
            _say_once(missing)
            self.source.prepare()

    def setup(self, stage: str) -> None:
        """Map the images into memory and split them.

        Raises:
            DataError: if the split or a batch needs more images than there are, or processes see different data.
        """
        # Decided once: CIFAR-10 that arrives while a run on the stand-in is under way must not replace it.
        self._source, self._stand_in = self.source, False
        images = self._source.load()
        split = self._split(images)
        self.images, self.true_labels = replace(images, train_labels=split.train_labels), images.train_labels
        self.train_indices, self.val_indices = split.train_indices, split.val_indices
        self.probe_indices = split.probe_indices
        self.test_indices = choose_test_images(len(images.test_labels), self._test_size)
        self.fingerprint = split.fingerprint
        self._placed = {}
        self.augmentation.fit(self._source, images, self.train_indices)
        if self.trainer is not None and self.trainer.strategy.broadcast(self.fingerprint) != self.fingerprint:
            raise DataError(
                f"process {self.trainer.global_rank} has other data or another split than process 0; "
                "give every machine the same data"
            )

    def description(self) -> dict[str, Any]:
        """Describe the data in plain values."""
        return {
            "source": self.source.KEY,
            "name": self.images.name,
            "identity": self.images.identity,
            "fingerprint": self.fingerprint,
            "split": self.split,
            "train_size": len(self.train_indices),
            "val_size": len(self.val_indices),
            "subset": self.subset,
            "test_size": len(self.test_indices),
            "test_available": len(self.images.test_labels),
            "augment": self.augment,
            "cutout": self.cutout,
            "mixup": self.mixup,
            "cutmix": self.cutmix,
            "label_noise": self.label_noise,
            "classes": list(self.images.classes),
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the names of the classes, the split's fingerprint, and the probe's last epoch, for a checkpoint."""
        return {"classes": list(self.classes), "fingerprint": self.fingerprint, "probed": self._probed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refuse a checkpoint of other classes, and to resume training with other data.

        Raises:
            DataError: if the checkpoint's classes are others, or it was trained on another split.
        """
        if self.trainer is None:
            return  # loaded for its settings alone, wherever the images are now
        self._probed = state_dict.get("probed", -1)  # checkpoints of earlier versions lack it
        if tuple(state_dict["classes"]) != self.classes:
            raise DataError(
                f"the checkpoint tells apart {', '.join(state_dict['classes'])}; "
                f"the data here has {', '.join(self.classes)}"
            )
        fitting = self.trainer.state.fn == TrainerFn.FITTING  # a trained network may be tested on any images
        if fitting and state_dict["fingerprint"] != self.fingerprint:
            raise DataError(
                f"the checkpoint was trained on other data or another split: its fingerprint is "
                f"{state_dict['fingerprint'][:12]}, the fingerprint of the data here is {self.fingerprint[:12]}"
            )

    def _loader(self, part: Literal["train", "test"], indices: Tensor, **settings: Any) -> BatchLoader:
        assert self.trainer is not None
        trainer = self.trainer
        self.share_of_batch(trainer.world_size)
        process = trainer.global_rank, trainer.world_size
        images, labels = self._place(part)
        return BatchLoader(
            images, labels, indices, self.batch_size, *process, lambda: trainer.current_epoch, **settings
        )

    def _place(self, part: Literal["train", "test"]) -> tuple[Tensor, Tensor]:
        """Return a part's images and labels where batches are gathered: on the device, copied once, or in memory."""
        assert self.trainer is not None
        if part not in self._placed:
            every, device = self.images, self.trainer.strategy.root_device
            there = self.on_device
            if there is None:
                size = every.train_images.nbytes + every.test_images.nbytes
                single = device.type == "cuda" and self.trainer.world_size == 1
                there = single and 10 * size <= torch.cuda.get_device_properties(device).total_memory
            place = device if there else torch.device("cpu")
            images, labels = getattr(every, f"{part}_images"), getattr(every, f"{part}_labels")
            self._placed[part] = images.to(place), labels.to(place)
        return self._placed[part]

    def train_dataloader(self) -> BatchLoader:
        """Return the training images, in an order of each epoch's own."""
        return self._loader("train", self.train_indices, seed=self.seed, mixing=self.mixup > 0 or self.cutmix > 0)

    def val_dataloader(self) -> list[BatchLoader]:
        """Return the validation images, in the split's order, and the probe unless it is switched off."""
        loaders = [self._loader("train", self.val_indices)]
        if self.probe_every:
            loaders.append(self._loader("train", self.probe_indices, due=self._probe_is_due))
        return loaders

    def _probe_is_due(self) -> bool:
        assert self.trainer is not None
        trainer, epoch = self.trainer, self.trainer.current_epoch
        last = epoch + 1 == trainer.max_epochs or trainer.global_step == trainer.max_steps or trainer.should_stop
        due = not trainer.sanity_checking and (last or self.probe_falls_due(epoch, self._probed))
        if due:
            self._probed = epoch
        return due

    def probe_falls_due(self, epoch: int, before: int) -> bool:
        """Return whether a validation in this epoch, from 0, is the first one since the probe's turn came.

        Its turn comes in every ``probe_every``-th epoch, from the first. ``before`` is the epoch of the probe's last
        evaluation, or -1. Further validations in that epoch evaluate it as well.
        """
        return epoch == before or epoch // self.probe_every > before // self.probe_every

    def test_dataloader(self) -> BatchLoader:
        """Return the test images, in the set's order."""
        return self._loader("test", self.test_indices)

    def on_after_batch_transfer(self, batch: Batch | Tensor, dataloader_idx: int) -> Batch | Tensor:
        """Prepare a whole batch for the network, on the device."""
        assert self.trainer is not None
        if isinstance(batch, Tensor):  # the example input, which Lightning's model summary sends through here
            return batch
        return self.to_network(batch, training=self.trainer.training)

    def to_network(self, batch: Batch, *, training: bool) -> Batch:
        """Prepare a loader's batch for the network, on the batch's device.

        ``training`` augments the images, and mixes them with their partners. A partner is augmented by its own draws of
        the epoch.
        """
        if not training:
            return batch._replace(images=self.network_input(batch.images.permute(0, 3, 1, 2)))
        images = self._augmented(batch)
        if batch.partners is None:
            return batch._replace(images=images)
        mixtures = epoch_mixtures(*self._running_epoch, self.mixup, self.cutmix, batch.indices.device)
        mixed, shares = mix(images, self._augmented(batch.partners), mixtures.index_select(1, batch.indices))
        return batch._replace(images=mixed, shares=shares)

    def _augmented(self, batch: Batch) -> Tensor:
        draws = epoch_draws(*self._running_epoch, self.augmentation.DRAWS, batch.indices.device)
        return self.network_input(batch.images.permute(0, 3, 1, 2), draws.index_select(1, batch.indices))

    @property
    def _running_epoch(self) -> tuple[int, int, int]:
        """The number of training and validation images, the seed and the epoch, as random numbers need them."""
        assert self.trainer is not None
        return len(self.images.train_labels), self.seed, self.trainer.current_epoch

    def network_input(self, images: Tensor, draws: Tensor | None = None) -> Tensor:
        """Prepare uint8 images [N, 3, 32, 32] for the network; see :func:`datamodules.batch.to_network`."""
        self._mean_std = self._mean_std.to(images.device)  # copied once
        return to_network(images, self.augmentation, self._mean_std, draws)


@cache
def _say_once(text: str) -> None:
    """Print to stderr what the data modules of one script would repeat."""
    print(text, file=sys.stderr, flush=True)
