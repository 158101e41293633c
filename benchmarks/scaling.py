"""Measure fit.py's images a second against the batch size, the size of the data and the number of processes."""

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.commands import FIT, run
from benchmarks.measuring import alternate
from overfitting_lab.runs.run import Run

BATCH_SIZES = (32, 64, 128, 256, 512, 1024)
TRAIN_SIZES = (1000, 5000, 15_000, 49_500)
IMAGES = 2048  # in a measured epoch on a CPU; twenty times as many on a GPU
EPOCHS = 3  # the first does not count


def measure(arguments: list[str], rounds: int, device: torch.device) -> dict[str, Any]:
    """Measure AlexNet by batch size and, with batches of 128, by number of training images and of processes."""
    gpu = device.type == "cuda"
    images = IMAGES * (20 if gpu else 1)
    two = ["--trainer.devices=2", "--trainer.strategy=ddp", *([] if gpu else ["--trainer.accelerator=cpu"])]

    def turn(flags: list[str], images: int, batch_size: int = 128) -> Any:
        overfit = ["--config=overfit", "--data.split=full", "--data.val_size=500", *arguments]
        return partial(speed, [*overfit, *flags], images // batch_size, batch_size)

    groups = {
        "batch_size": {str(size): turn([f"--data.batch_size={size}"], images, size) for size in BATCH_SIZES},
        "train_size": {str(size): turn([f"--data.train_size={size}"], min(images, size)) for size in TRAIN_SIZES},
    }
    if not gpu or torch.cuda.device_count() > 1:
        groups["processes"] = {"1": turn([], images), "2": turn(two, images)}
    return {name: alternate(group, rounds, warm_up=0) for name, group in groups.items()}


def speed(arguments: list[str], steps: int, batch_size: int) -> float:
    """Return images a second of a short run without validation, from its metrics.csv."""
    limits = {"train": steps, "val": 0, "test": 1}
    short = [f"--trainer.limit_{split}_batches={batches}" for split, batches in limits.items()]
    with tempfile.TemporaryDirectory() as folder:
        run([FIT, *arguments, *short, f"--trainer.max_epochs={EPOCHS}"], Path(folder))
        rows = Run(Path(folder) / "lightning_logs" / "overfit" / "version_0").records
    return steps * batch_size * (EPOCHS - 1) / sum(row.seconds for row in rows[1:])
