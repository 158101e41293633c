"""The record of each epoch, built once for every callback that reads it."""

import time
from dataclasses import asdict
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from overfitting_lab.runs.epochs import METRICS, EpochRecord


class EpochRecorder(Callback):
    """Measure each epoch. It must stand before the callbacks that read its records."""

    def __init__(self) -> None:
        self.records: list[EpochRecord] = []  # one for each epoch that has ended
        self.learning_rate = float("nan")  # of the running step. After the step, a schedule may have changed it
        self._training_seconds = 0.0
        self._training_images = 0
        self._validated = False  # since the last epoch ended
        self._epoch_started = self._validation_started = self._validation_seconds = 0.0
        self._seconds_before = 0.0  # of the running epoch, before the run was interrupted

    @property
    def images_per_second(self) -> float | None:
        """Training images per second of training; ``None`` before the first epoch has ended."""
        return round(self._training_images / self._training_seconds, 1) if self._training_seconds else None

    def state_dict(self) -> dict[str, Any]:
        return {
            "rows": [asdict(record) for record in self.records],
            "epoch_seconds": time.perf_counter() - self._epoch_started,
            "validation_seconds": self._validation_seconds,
            "training_seconds": self._training_seconds,
            "training_images": self._training_images,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.records = [EpochRecord(**row) for row in state_dict["rows"]]
        self._seconds_before = state_dict["epoch_seconds"]
        self._validation_seconds = state_dict["validation_seconds"]
        self._training_seconds = state_dict["training_seconds"]
        self._training_images = state_dict["training_images"]

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Restore the records from an earlier version's checkpoint, which stored them with the summary callback."""
        earlier = checkpoint["callbacks"].get("RunSummary", {})
        if "rows" in earlier:
            self.load_state_dict(earlier)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock, with the time before an interruption."""
        self._epoch_started = time.perf_counter() - self._seconds_before

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._epoch_started = time.perf_counter()
        self._validation_seconds = 0.0

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """Note the learning rate of the step."""
        self.learning_rate = trainer.optimizers[0].param_groups[0]["lr"]

    def on_train_batch_end(self, trainer: Trainer, model: LightningModule, outputs: Any, batch: Any, *_: Any) -> None:
        """Count the images of the whole step."""
        self._training_images += batch.total

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock of training."""
        self._validation_started = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note that the epoch has validation metrics of its own."""
        self._validation_seconds += time.perf_counter() - self._validation_started
        self._validated = not trainer.sanity_checking

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Build the epoch's record."""
        logged = {name: plain(value) for name, value in trainer.callback_metrics.items()}  # synchronizes processes
        seconds = time.perf_counter() - self._epoch_started
        self._training_seconds += seconds - self._validation_seconds
        # Lightning keeps the metrics of an earlier validation.
        metrics: dict[str, Any] = {
            name: logged.get(name) if self._validated or name.startswith("train_") else None for name in METRICS
        }
        self._validated = False
        metrics |= {"learning_rate": self.learning_rate, "seconds": round(seconds, 3)}
        self.records.append(EpochRecord(epoch=trainer.current_epoch, step=trainer.global_step, **metrics))


def recorder_of(trainer: Trainer) -> EpochRecorder:
    """Return the Trainer's recorder."""
    return next(callback for callback in trainer.callbacks if isinstance(callback, EpochRecorder))  # type: ignore[attr-defined]


def plain(value: Tensor) -> float:
    """Return a float32 number as the shortest decimal that gives it back: 0.135, not 0.13500000536."""
    return float(str(np.float32(value.item())))
