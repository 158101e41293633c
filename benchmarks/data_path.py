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


def measure(arguments: list[str], rounds: int) -> dict[str, Spread]:
    """Measure images a second of each way to gather, crop, flip, scale and normalize images on the CPU."""
    keep_freed_memory()  # as fit.py does
    data = prepared(["--config=regularized", "--trainer.accelerator=cpu", *arguments]).datamodule
    picked = data.train_indices[: BATCHES * data.batch_size]
    images, labels = data.images.train_images[picked], data.images.train_labels[picked]

    # Processes are spawned, because a fork of this process, which has threads, may hang.
    two_workers = {"num_workers": 2, "persistent_workers": True, "multiprocessing_context": "spawn"}
    loader: Callable[..., DataLoader[Any]] = partial(DataLoader, batch_size=data.batch_size, shuffle=True)
    pil = Images(images.numpy(), labels.numpy(), pil_transform(*augmentations("flip_crop", 32)))
    scaled = v2.ToDtype(torch.float32, scale=True)
    v2_steps = [v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip(), scaled, v2.Normalize(MEAN, STD)]
    ways: dict[str, Callable[[], Iterable[Any]]] = {
        "whole batches": lambda: (data.to_network(batch, training=True) for batch in data.train_dataloader()),
        "PIL, in process": loader(pil).__iter__,
        "PIL, 2 workers": loader(pil, **two_workers).__iter__,
        "transforms.v2, in process": loader(Images(images.permute(0, 3, 1, 2), labels, v2.Compose(v2_steps))).__iter__,
    }

    def images_per_second(name: str) -> float:
        started = time.perf_counter()
        images = sum(len(labels) for _, labels, *_ in itertools.islice(ways[name](), BATCHES))
        return images / (time.perf_counter() - started)

    return alternate(images_per_second, ways, rounds)
