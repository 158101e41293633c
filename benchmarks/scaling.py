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
    groups: dict[str, dict[str, tuple[list[str], int, int]]] = {  # flags, images of an epoch and of a batch
        "batch_size": {str(size): ([f"--data.batch_size={size}"], images, size) for size in BATCH_SIZES},
        "train_size": {str(size): ([f"--data.train_size={size}"], min(images, size), 128) for size in TRAIN_SIZES},
    }
    if not gpu or torch.cuda.device_count() > 1:
        groups["processes"] = {"1": ([], images, 128), "2": (two, images, 128)}

    def speed(group: str, value: str) -> float:
        """Return images a second of a short run without validation, from its metrics.csv."""
        flags, images, batch_size = groups[group][value]
        steps = images // batch_size
        limits = {"train": steps, "val": 0, "test": 1}
        short = [f"--trainer.limit_{split}_batches={batches}" for split, batches in limits.items()]
        overfit = [FIT, "--config=overfit", "--data.split=full", "--data.val_size=500", *arguments]
        with tempfile.TemporaryDirectory() as folder:
            run([*overfit, *flags, *short, f"--trainer.max_epochs={EPOCHS}"], Path(folder))
            rows = Run(Path(folder) / "lightning_logs" / "overfit" / "version_0").records
        return steps * batch_size * (EPOCHS - 1) / sum(row.seconds for row in rows[1:])

    return {group: alternate(partial(speed, group), values, rounds, warm_up=0) for group, values in groups.items()}
