"""Compare the data path from the data set to a batch for the network: whole batches at once, and the alternatives."""

import itertools
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from benchmarks.contenders import augmentations, prepared
from benchmarks.measuring import Spread, alternate
from benchmarks.plain_loop import MEAN, STD, Images, pil_transform
from overfitting_lab.cli.memory import keep_freed_memory

BATCHES = 256
EVERY = ", every augmentation"
CROP_FLIP = (v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip())
NORMALIZE = (v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD))


def measure(arguments: list[str], rounds: int) -> dict[str, Spread]:
    """Measure images a second of each way to gather, augment, scale and normalize images on the CPU.

    Each way crops and flips. ``EVERY`` in a name adds TrivialAugment and a cutout; torchvision's is random erasing.
    """
    keep_freed_memory()  # as fit.py does
    common = ["--config=regularized", "--trainer.accelerator=cpu", *arguments]
    data = prepared(common).datamodule
    every = prepared([*common, "--data.augment=trivial", "--data.cutout=16"]).datamodule
    picked = data.train_indices[: BATCHES * data.batch_size]
    images, labels = data.images.train_images[picked], data.images.train_labels[picked]

    # Processes are spawned, because a fork of this process, which has threads, may hang.
    two_workers = {"num_workers": 2, "persistent_workers": True, "multiprocessing_context": "spawn"}
    loader: Callable[..., DataLoader[Any]] = partial(DataLoader, batch_size=data.batch_size, shuffle=True)
    channels_first = images.permute(0, 3, 1, 2)
    pil = Images(images.numpy(), labels.numpy(), pil_transform(*augmentations("flip_crop", 32)))
    tensors = Images(channels_first, labels, v2.Compose([*CROP_FLIP, *NORMALIZE]))
    steps = [*CROP_FLIP, v2.TrivialAugmentWide(), *NORMALIZE, v2.RandomErasing(p=1)]
    tensors_every = Images(channels_first, labels, v2.Compose(steps))
    ways: dict[str, Callable[[], Iterable[Any]]] = {
        "whole batches": lambda: (data.to_network(batch, training=True) for batch in data.train_dataloader()),
        "PIL, in process": loader(pil).__iter__,
        "PIL, 2 workers": loader(pil, **two_workers).__iter__,
        "transforms.v2, in process": loader(tensors).__iter__,
        f"whole batches{EVERY}": lambda: (every.to_network(batch, training=True) for batch in every.train_dataloader()),
        f"transforms.v2, in process{EVERY}": loader(tensors_every).__iter__,
    }

    def images_per_second(name: str) -> float:
        started = time.perf_counter()
        images = sum(len(labels) for _, labels, *_ in itertools.islice(ways[name](), BATCHES))
        return images / (time.perf_counter() - started)

    return alternate(images_per_second, ways, rounds)
