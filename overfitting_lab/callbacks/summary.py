"""What a run says of itself in files: metrics.csv, summary.json, curves.png and weights.pth."""

import contextlib
import csv
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from overfitting_lab.callbacks.checkpoints import BestCheckpoint
from overfitting_lab.callbacks.logger import RunLogger
from overfitting_lab.callbacks.recovery import StoppedError
from overfitting_lab.doctor.callback import Doctor
from overfitting_lab.runs.figures import curves
from overfitting_lab.runs.files import replace_file

COLUMNS = ("epoch", "step", "train_loss", "train_acc", "val_loss", "val_acc", "learning_rate", "seconds")
METRICS = ("train_loss", "train_acc", "val_loss", "val_acc")


class RunSummary(Callback):
    """Keeps the run's files.

    ``metrics.csv`` gets a row an epoch; ``summary.json`` is written at the start, after every validation and epoch, and
    at the end; ``curves.png`` and ``weights.pth`` (the network of the best checkpoint) at the end. The last three are
    written beside their place and moved there, so that no reader sees half a file.

    Args:
        logger: the run's logger, which owns the folder.
        best: keeps the best checkpoint.
        facts: what is known of the run before it starts: the summary's keys that no epoch changes.
        doctor: has the diagnosis; none where nobody looks.
    """

    def __init__(
        self, logger: RunLogger, best: BestCheckpoint, facts: dict[str, Any], doctor: Doctor | None = None
    ) -> None:
        self._logger = logger
        self._best = best
        self._doctor = doctor
        self._summary: dict[str, Any] = {**facts, "status": "running", "diagnosis": []}
        self._rows: list[dict[str, float | None]] = []
        self._training_seconds = 0.0
        self._training_images = 0
        self._rate = math.nan
        self._validated = False  # since the last epoch ended
        self._files_restored = False
        self._seconds_before = self._epoch_seconds_before = 0.0
        self._started = self._epoch_started = self._validation_seconds = 0.0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Has every process know the run's folder."""
        self._logger.share(trainer.strategy)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes what is known before the first step."""
        self._started = time.perf_counter()
        if not trainer.is_global_zero:
            return
        data = trainer.datamodule  # type: ignore[attr-defined]
        self._summary["data"] = data.description()
        self._summary["model"] = {
            **self._summary["model"],
            "parameters": sum(parameter.numel() for parameter in pl_module.parameters()),
        }
        optimizer = trainer.optimizers[0]
        settings = {key: value for key, value in optimizer.defaults.items() if isinstance(value, float | int | str)}
        self._summary["optimizer"] = {"class_path": class_path(optimizer), **settings}
        self._summary["device"] = pl_module.device.type
        self._summary["precision"] = trainer.precision
        self._summary["world_size"] = trainer.world_size
        self._update(trainer)

    def state_dict(self) -> dict[str, Any]:
        """What a run that goes on needs of the one before."""
        now = time.perf_counter()
        return {
            "rows": self._rows,
            "seconds": self._seconds_before + now - self._started,
            "epoch_seconds": now - self._epoch_started,
            "validation_seconds": self._validation_seconds,
            "training_seconds": self._training_seconds,
            "training_images": self._training_images,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from there."""
        self._rows = state_dict["rows"]
        self._seconds_before = state_dict["seconds"]
        self._epoch_seconds_before = state_dict["epoch_seconds"]
        self._validation_seconds = state_dict["validation_seconds"]
        self._training_seconds = state_dict["training_seconds"]
        self._training_images = state_dict["training_images"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock."""
        self._epoch_started = time.perf_counter() - self._epoch_seconds_before
        self._restore_files(trainer)

    def _restore_files(self, trainer: Trainer) -> None:
        """Lets files and curves of a run that goes on end where its checkpoint was taken."""
        self._files_restored = True
        if trainer.is_global_zero:
            metrics = self._logger.folder / "metrics.csv"
            if self._rows or metrics.exists():
                self._logger.go_on_from(trainer.global_step, self._rows)
            replace_file(metrics, lambda path: _write_rows(path, self._rows))

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the epoch's clock."""
        self._epoch_started = time.perf_counter()
        self._validation_seconds = 0.0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Remembers the step's learning rate: at the end of the epoch, schedules have stepped already."""
        self._rate = trainer.optimizers[0].param_groups[0]["lr"]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Counts the images of the whole step."""
        self._training_images += batch.total

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stops the clock of training."""
        self._validation_started = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Brings the summary up to date."""
        self._validation_seconds += time.perf_counter() - self._validation_started
        self._validated = not trainer.sanity_checking
        if trainer.is_global_zero and not trainer.sanity_checking:
            self._update(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Adds the epoch's row."""
        logged = trainer.callback_metrics  # adds up over processes: every one must ask
        if not trainer.is_global_zero:
            return
        seconds = time.perf_counter() - self._epoch_started
        self._training_seconds += seconds - self._validation_seconds
        metrics = {
            name: plain(value)
            for name, value in logged.items()
            if self._validated or not name.startswith("val_")  # else they are of an earlier epoch
        }
        self._validated = False
        row = {
            "epoch": trainer.current_epoch,
            "step": trainer.global_step,
            **{name: metrics.get(name) for name in METRICS},
            "learning_rate": self._rate,
            "seconds": round(seconds, 3),
        }
        self._rows.append(row)
        self._append(row)
        self._update(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes what is left of the run."""
        if not self._files_restored:  # it goes on from its end, so that training did not start
            self._restore_files(trainer)
        if trainer.is_global_zero:
            self._end(trainer, status="finished")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Says how the run ended, and keeps the curves up to there."""
        if trainer.is_global_zero and trainer.state.fn == "fit" and "data" in self._summary:
            interrupted = isinstance(exception, KeyboardInterrupt | StoppedError)
            by_user = isinstance(exception, KeyboardInterrupt)
            self._summary["reason"] = "interrupted by the user" if by_user else str(exception)
            with contextlib.suppress(OSError):  # a full disk may be the reason
                self._end(trainer, status="interrupted" if interrupted else "failed")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Adds the test's result."""
        images = int(pl_module.test_confusion.compute().sum())  # type: ignore[operator, union-attr]
        if not trainer.is_global_zero:
            return
        self._summary["test"] = {
            "checkpoint": Path(trainer.ckpt_path).stem if trainer.ckpt_path else "last",
            "loss": plain(trainer.callback_metrics["test_loss"]),
            "acc": plain(trainer.callback_metrics["test_acc"]),
            "images": images,
        }
        self._write()

    def _end(self, trainer: Trainer, status: str) -> None:
        self._summary["status"] = status
        self._update(trainer)
        if self._rows:
            data = self._summary["data"]
            title = f"{self._summary['experiment']}: {data['train_size']:,} training images of {data['name']}"
            figure = curves(self._rows, title)
            replace_file(self._logger.folder / "curves.png", lambda path: figure.savefig(path, dpi=120, format="png"))
        if self._best.path.is_file():
            self._write_weights()

    def _write_weights(self) -> None:
        state = torch.load(self._best.path, map_location="cpu", weights_only=True)["state_dict"]
        network = {key.removeprefix("network."): value for key, value in state.items() if key.startswith("network.")}
        replace_file(self._logger.folder / "weights.pth", lambda path: torch.save(network, path))

    def _append(self, row: dict[str, Any]) -> None:
        with (self._logger.folder / "metrics.csv").open("a", newline="") as file:
            csv.DictWriter(file, COLUMNS).writerow(row)

    def _update(self, trainer: Trainer) -> None:
        self._summary |= {
            "epochs": len(self._rows),
            "global_step": trainer.global_step,
            "seconds": round(self._seconds_before + time.perf_counter() - self._started, 3),
        }
        if self._doctor is not None:
            self._summary["diagnosis"] = self._doctor.diagnosis
        if self._training_seconds:
            self._summary["train_images_per_second"] = round(self._training_images / self._training_seconds, 1)
        validated = [row for row in self._rows if row["val_acc"] is not None]
        if validated:
            best = max(validated, key=lambda row: row["val_acc"] or 0.0)
            last = validated[-1]
            for name, row in {"best": best, "last": last}.items():
                self._summary[name] = {key: row[key] for key in ("epoch", *METRICS)}
            self._summary["generalization_gap"] = (last["train_acc"] or 0.0) - (last["val_acc"] or 0.0)
        self._write()

    def _write(self) -> None:
        text = json.dumps(_without_nan(self._summary), indent=2) + "\n"
        replace_file(self._logger.folder / "summary.json", lambda path: path.write_text(text))


def plain(value: Tensor) -> float:
    """A float32 number by the shortest decimal that gives it back: 0.135, not 0.13500000536."""
    return float(str(np.float32(value.item())))


def class_path(thing: object) -> str:
    """Where a thing's class is imported from: of ``torch.optim.adam.Adam`` and ``torch.optim.Adam`` the shorter."""
    kind = type(thing)
    package = kind.__module__.rpartition(".")[0]
    public = getattr(sys.modules.get(package), kind.__name__, None) is kind
    return f"{package if public else kind.__module__}.{kind.__name__}"


def _write_rows(path: Path, rows: list[dict[str, float | None]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def _without_nan(value: Any) -> Any:
    """JSON has neither NaN nor infinity: they become null."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
