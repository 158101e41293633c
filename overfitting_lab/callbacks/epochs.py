"""The record of each epoch, built once for every callback that reads it."""

import math
import time
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lightning_modules.errors import ModelError
from overfitting_lab.callbacks.progress import ends_epoch, stops, validation_is_scheduled
from overfitting_lab.runs.epochs import (
    METRICS,
    PROBE,
    BestMetrics,
    EpochRecord,
    Monitor,
    Validation,
    best_epoch,
    names_of,
    score,
    value_of,
)
from overfitting_lab.runs.files import RunError
from overfitting_lab.runs.notes import note


class DivergedError(Exception):
    """The loss is NaN or infinite. The message names the step and the learning rate."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"{what}; the checkpoints are older. Try a smaller --model.optimizer.lr, in a new run if it fails again"
        )


class EpochRecorder(Callback):
    """Measure each epoch, and decide which validation is the best. It must stand before the callbacks that read it.

    If training stops within an epoch, Lightning may validate at once. Such an unscheduled validation is the best only
    if there is no other, and no checkpoint stores it. So a run that was stopped and resumed has the same best
    validation as a run that was not stopped. ``monitor`` is the metric that decides.
    """

    def __init__(self, monitor: Monitor = "val_acc") -> None:
        self._monitor = monitor
        self.records: list[EpochRecord] = []  # one for each epoch that has ended
        self.learning_rate = float("nan")  # of the running step. After the step, a schedule may have changed it
        self._training_seconds = 0.0
        self._training_images = 0
        self._epoch_images = 0  # of the running epoch
        self.best: Validation | None = None  # at which best.ckpt was saved
        self.is_best = False  # True if the last validation is the best
        self._best_is_scheduled = True
        self._validation: Validation | None = None  # the last one
        self._validated = False  # since the last epoch ended
        self._probe: dict[str, float] = {}  # the probe's metrics, if it was evaluated since the last epoch ended
        self._epoch_started = self._validation_started = self._validation_seconds = 0.0
        self._seconds_before = 0.0  # of the running epoch, before the run was interrupted

    @property
    def images_per_second(self) -> float | None:
        """Training images per second of the epochs that have ended; ``None`` before the first has."""
        return round(self._training_images / self._training_seconds, 1) if self._training_seconds else None

    @property
    def best_metrics(self) -> BestMetrics | None:
        """The best validation, with the training metrics of its epoch if the epoch has ended."""
        if self.best is None:
            return None
        of_epoch = [record for record in self.records if record.epoch == self.best.epoch]
        measured = {name: getattr(record, name) for record in of_epoch for name in ("train_loss", "train_acc")}
        own = {name: value for record in of_epoch for name, value in record.own.items() if name.startswith("train_")}
        return BestMetrics(**{**vars(self.best), "own": own | self.best.own}, **measured)

    def state_dict(self) -> dict[str, Any]:
        return {
            "rows": [asdict(record) for record in self.records],
            "monitor": self._monitor,
            "best": asdict(self.best) if self.best and self._best_is_scheduled else None,
            "validation": asdict(self._validation) if self._validation else None,
            "validated": self._validated,
            "probe": self._probe,
            "epoch_seconds": time.perf_counter() - self._epoch_started,
            "validation_seconds": self._validation_seconds,
            "training_seconds": self._training_seconds,
            "training_images": self._training_images,
            "epoch_images": self._epoch_images,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if (monitor := state_dict.get("monitor", "val_acc")) != self._monitor:
            raise RunError(
                f"{monitor} chose the best checkpoint so far, so that {self._monitor} cannot choose it from here on; "
                f"leave --monitor out, or begin a new run"
            )
        self.records = [EpochRecord(**row) for row in state_dict["rows"]]
        best = state_dict.get("best")
        if "best" not in state_dict and (epoch := best_epoch(self.records)):  # a checkpoint of an earlier version
            best = {name: getattr(epoch, name) for name in ("epoch", "step", "val_loss", "val_acc")}
        self.best = Validation(**best) if best else None
        self._validation = Validation(**state_dict["validation"]) if state_dict.get("validation") else None
        self._validated = state_dict.get("validated", False)
        self._probe = state_dict.get("probe", {})
        self._seconds_before = state_dict["epoch_seconds"]
        self._validation_seconds = state_dict["validation_seconds"]
        self._training_seconds = state_dict["training_seconds"]
        self._training_images = state_dict["training_images"]
        self._epoch_images = state_dict.get("epoch_images", 0)  # earlier versions counted them in training_images

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Restore the records from an earlier version's checkpoint, which stored them with the summary callback."""
        earlier = checkpoint["callbacks"].get("RunSummary", {})
        if "rows" in earlier:
            self.load_state_dict(earlier)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the metrics of the last validation, which callbacks of a resumed run may monitor."""
        if self._validation is not None:
            for name in ("val_loss", "val_acc", *self._validation.own):
                trainer.callback_metrics[name] = torch.tensor(value_of(self._validation, name))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock, with the time before an interruption."""
        self._epoch_started = time.perf_counter() - self._seconds_before

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._epoch_started = time.perf_counter()
        self._validation_seconds = 0.0

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """Note the learning rate of the step."""
        self.learning_rate = float(trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_batch_end(self, trainer: Trainer, model: LightningModule, outputs: Any, batch: Any, *_: Any) -> None:
        """Count the images of the whole step.

        Raises:
            ModelError: if a network's own ``training_step`` does not return what callbacks need.
        """
        if lacking := {"cross_entropy", "logits"} - outputs.keys():
            raise ModelError(
                f"{type(model).__name__}.training_step does not return {' and '.join(sorted(lacking))}: let it end "
                "with return super().training_step(batch, batch_idx), or change the loss alone, by training_losses"
            )
        self._epoch_images += batch.total

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock of training."""
        self._validation_started = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Store the validation's metrics, and decide if it is the best.

        Raises:
            DivergedError: if the loss is not finite.
        """
        self._validation_seconds += time.perf_counter() - self._validation_started
        if trainer.sanity_checking:
            return
        logged, own = trainer.callback_metrics, names_of(pl_module.own_metrics)  # type: ignore[arg-type]
        loss, accuracy = (plain(logged[name]) for name in ("val_loss", "val_acc"))
        if not math.isfinite(loss):
            rate = f"learning rate {self.learning_rate:g}"
            raise DivergedError(f"the validation loss is NaN or infinite after step {trainer.global_step} ({rate})")
        mine = {name: plain(logged[name]) for name in own if name.startswith("val_")}
        validation = Validation(trainer.current_epoch, loss, accuracy, trainer.global_step, mine)
        if trainer.is_global_zero and not math.isfinite(score(validation, self._monitor)):
            undecided = f"{self._monitor} is NaN or infinite in epoch {trainer.current_epoch + 1}"
            note("choosing the best validation", RunError(undecided))
        scheduled = validation_is_scheduled(trainer) or not stops(trainer)
        if scheduled or not (self._validated or ends_epoch(trainer)):
            self._validation, self._validated = validation, True
            if pl_module.probed:
                probed = (*PROBE, *(name for name in own if name.startswith("probe_")))
                self._probe = {name: plain(logged[name]) for name in probed if name in logged}
        self.is_best = self.best is None or (scheduled and validation.is_better_than(self.best, self._monitor))
        if self.is_best:
            self.best, self._best_is_scheduled = validation, scheduled

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Build the epoch's record."""
        logged = {name: plain(value) for name, value in trainer.callback_metrics.items()}  # synchronizes processes
        seconds = time.perf_counter() - self._epoch_started
        self._training_seconds += seconds - self._validation_seconds
        self._training_images += self._epoch_images
        self._epoch_images = 0
        validation = vars(self._validation) if self._validated and self._validation else {}
        metrics: dict[str, Any] = {
            name: (validation if name.startswith("val_") else logged).get(name) for name in METRICS
        }
        metrics |= {name: value for name, value in self._probe.items() if name in PROBE}
        # Of validation and probe, `logged` may have the values of an earlier epoch.
        measured = {name: value for name, value in logged.items() if name.startswith("train_")}
        measured |= validation.get("own", {}) | self._probe
        own = names_of(pl_module.own_metrics)  # type: ignore[arg-type]
        metrics["own"] = {name: measured[name] for name in own if name in measured}
        self._validated, self._probe = False, {}
        metrics |= {"learning_rate": self.learning_rate, "seconds": round(seconds, 3)}
        self.records.append(EpochRecord(epoch=trainer.current_epoch, step=trainer.global_step, **metrics))


def recorder_of(trainer: Trainer) -> EpochRecorder:
    """Return the Trainer's recorder."""
    return next(callback for callback in trainer.callbacks if isinstance(callback, EpochRecorder))  # type: ignore[attr-defined]


def plain(value: Tensor) -> float:
    """Return a float32 number as the shortest decimal that gives it back: 0.135, not 0.13500000536."""
    return float(str(np.float32(value.item())))
