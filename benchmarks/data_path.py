"""From the data set to a batch for the network: whole batches at once, and what else one might take."""

import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from benchmarks.contenders import pil_transform
from benchmarks.measuring import Spread, alternate
from benchmarks.plain_loop import MEAN, STD, PILImages
from overfitting_lab.cli import ExperimentCLI
from overfitting_lab.cli.memory import keep_freed_memory

BATCHES = 256


class TensorImages(Dataset[tuple[torch.Tensor, int]]):
    """Images in memory, one at a time, through torchvision.transforms.v2."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        self.images = images
        self.labels = labels
        self.transform = v2.Compose(
            [
                v2.RandomCrop(32, padding=4),
                v2.RandomHorizontalFlip(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(self.images[index]), int(self.labels[index])


def measure(arguments: list[str], rounds: int) -> dict[str, Spread]:
    """Images a second that are gathered, cropped, flipped, scaled and normalized on the CPU, by way."""
    keep_freed_memory()  # as fit.py does
    cli = ExperimentCLI(["--config=regularized", "--trainer.accelerator=cpu", *arguments], keep=False)
    data = cli.datamodule
    data.trainer = cli.trainer
    data.prepare_data()
    data.setup("fit")
    picked = data.train_indices[: BATCHES * data.batch_size]
    images, labels = data.images.train_images[picked], data.images.train_labels[picked]

    def whole_batches() -> Iterator[Any]:
        for batch in data.train_dataloader():
            yield data.to_network(batch, training=True)

    pil = PILImages(images.numpy(), labels.numpy(), pil_transform("flip_crop", 32))
    ways: dict[str, Callable[[], Iterable[Any]]] = {"whole batches": whole_batches}
    loaders: dict[str, DataLoader[Any]] = {
        "PIL, in process": DataLoader(pil, data.batch_size, shuffle=True),
        "PIL, 2 workers": DataLoader(
            pil,
            data.batch_size,
            shuffle=True,
            num_workers=2,
            persistent_workers=True,
            multiprocessing_context="spawn",  # a fork of this process, which has threads, may hang
        ),
        "transforms.v2, in process": DataLoader(
            TensorImages(images.permute(0, 3, 1, 2), labels), data.batch_size, shuffle=True
        ),
    }
    ways |= {name: loader.__iter__ for name, loader in loaders.items()}

    def turn(way: Callable[[], Iterable[Any]]) -> Callable[[], float]:
        def images_per_second() -> float:
            started = time.perf_counter()
            images = sum(len(labels) for _, labels, *_ in itertools.islice(way(), BATCHES))
            return images / (time.perf_counter() - started)

        return images_per_second

    return alternate({name: turn(way) for name, way in ways.items()}, rounds)
