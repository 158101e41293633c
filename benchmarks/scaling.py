"""Images a second of fit.py against the batch size, the size of the data and the number of processes."""

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.commands import FIT, run
from benchmarks.measuring import alternate
from overfitting_lab.runs.run import Run

BATCH_SIZES = (32, 64, 128, 256, 512, 1024)
TRAIN_SIZES = (1000, 5000, 15_000, 49_500)
IMAGES = 2048  # in an epoch that is measured, on a CPU; a GPU takes twenty times as many
EPOCHS = 3  # the first of which does not count


def measure(arguments: list[str], rounds: int, device: torch.device) -> dict[str, Any]:
    """Images a second of AlexNet by batch size, by training images (batch 128), and by processes (batch 128)."""
    gpu = device.type == "cuda"
    images = IMAGES * (20 if gpu else 1)
    overfit = ["--config=overfit", "--data.split=full", "--data.val_size=500", *arguments]
    two = ["--trainer.devices=2", "--trainer.strategy=ddp"]
    if not gpu:
        two.append("--trainer.accelerator=cpu")
    groups: dict[str, dict[str, Callable[[], float]]] = {
        "batch_size": {
            str(size): partial(speed, [*overfit, f"--data.batch_size={size}"], images // size, size)
            for size in BATCH_SIZES
        },
        "train_size": {
            str(size): partial(speed, [*overfit, f"--data.train_size={size}"], min(images, size) // 128, 128)
            for size in TRAIN_SIZES
        },
    }
    if not gpu or torch.cuda.device_count() > 1:
        processes: tuple[tuple[int, list[str]], ...] = ((1, []), (2, two))
        groups["processes"] = {
            str(number): partial(speed, [*overfit, *flags], images // 128, 128) for number, flags in processes
        }
    return {name: alternate(group, rounds, warm_up=0) for name, group in groups.items()}


def speed(arguments: list[str], steps: int, batch_size: int) -> float:
    """Images a second of a short run without validation, from its metrics.csv."""
    limits = {"train": steps, "val": 0, "test": 1}
    short = [f"--trainer.limit_{split}_batches={batches}" for split, batches in limits.items()]
    with tempfile.TemporaryDirectory() as folder:
        run([FIT, *arguments, *short, f"--trainer.max_epochs={EPOCHS}"], Path(folder))
        rows = Run(Path(folder) / "lightning_logs" / "overfit" / "version_0").records
    return steps * batch_size * (EPOCHS - 1) / sum(row.seconds for row in rows[1:])
