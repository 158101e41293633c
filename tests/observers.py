"""Callbacks, hooks and a network of a user, given by class path."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, final

import torch
from filelock import FileLock, Timeout
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import nn

from datamodules import Batch
from lightning_modules import ImageClassifier

META = torch.device("meta")


class StepWeights(Callback):
    """Write the network's weights after every step to a file."""

    def __init__(self, file: str = "weights.pt") -> None:
        self.file = Path(file)
        self.weights: list[dict[str, torch.Tensor]] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.weights.append({name: value.clone() for name, value in pl_module.state_dict().items()})

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        torch.save(self.weights, self.file)


class Draws(Callback):
    """Draw an image into TensorBoard, as callbacks for Lightning's own logger do."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 0:
            trainer.logger.experiment.add_image("first batch", batch.images[0], 0)  # type: ignore[union-attr]


class FolderLock(Callback):
    """Print if another process could train the run, after training and in the test."""

    def _print(self, trainer: Trainer, when: str) -> None:
        lock = FileLock(trainer.logger.folder / ".lock", timeout=0)  # type: ignore[union-attr]
        try:
            lock.acquire()
        except Timeout:
            print(f"held {when}")
        else:
            lock.release()
            print(f"free {when}")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._print(trainer, "after training")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._print(trainer, "in the test")


class HasObject(Callback):
    """Have a default that YAML cannot hold."""

    def __init__(self, device: torch.device = META, patience: int | None = 5) -> None:
        self.device = device
        self.patience = patience


class HasObjects(Callback):
    """Have a default in which there is something that YAML cannot hold."""

    def __init__(self, devices: Sequence[torch.device] = (META,)) -> None:
        self.devices = devices


@final
class LogsMore(ImageClassifier):
    """Log another metric with each validation."""

    def __init__(
        self,
        num_classes: int = 10,
        image_size: int = 32,
        optimizer: OptimizerCallable = partial(torch.optim.SGD, lr=1e-2),
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        network = nn.Sequential(nn.Flatten(), nn.Linear(3 * image_size**2, num_classes))
        super().__init__(network, num_classes, image_size, optimizer, lr_scheduler, "epoch")

    def on_validation_epoch_end(self) -> None:
        super().on_validation_epoch_end()
        self.log("val_f1", 0.5)


def hello(trainer: Trainer, pl_module: LightningModule) -> None:
    print("hello from a function")


def size(batch: Batch) -> int:
    return len(batch.labels)
