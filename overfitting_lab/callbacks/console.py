"""The lines, the progress bar and the table that a terminal shows of a run."""

import shlex
import sys
import time
import warnings
from pathlib import Path
from statistics import median
from typing import Any

import rich
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.utilities.model_summary.model_summary import ModelSummary
from rich.table import Table
from rich.text import Text

from overfitting_lab.callbacks.clock import clock_of
from overfitting_lab.callbacks.ending import reason, untested
from overfitting_lab.callbacks.epochs import recorder_of
from overfitting_lab.callbacks.logger import RunLogger
from overfitting_lab.callbacks.run_length import run_length, steps_left
from overfitting_lab.runs.summary import out_of
from overfitting_lab.runs.text import duration

PAUSE = 10  # seconds between two lines about the test
SPLIT_NAMES = {"train": "training", "val": "validation", "probe": "probe"}
RECENT = 5  # epochs, whose median time tells how long the rest takes


class Console(Callback):
    """Print what is trained on which data, where the run's folder is, and how the run ended.

    With ``lines`` it prints a line every epoch, for a log file; a terminal has a progress bar instead. Without a
    ``logger`` nothing is kept.
    """

    def __init__(self, logger: RunLogger | None, lines: bool, precision_reason: str) -> None:
        self._logger = logger
        self._lines = lines
        self._precision_reason = precision_reason
        self._result = ""
        self._test_started = self._said = 0.0  # by time.monotonic()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        print(data_lines(trainer.datamodule.description()))  # type: ignore[attr-defined]
        print(f"precision  {trainer.precision} ({self._precision_reason})")
        print(f"device     {_device(trainer, pl_module)}")
        print(f"run        {self._logger.folder if self._logger else 'nothing is kept'}", flush=True)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print where a resumed run continues."""
        if trainer.is_global_zero and trainer.global_step:
            print(f"resumed    in epoch {trainer.current_epoch + 1} after step {trainer.global_step}", flush=True)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not (trainer.is_global_zero and self._lines):
            return
        record = recorder_of(trainer).records[-1]
        done = record.epoch + 1
        length = run_length(trainer, trainer.datamodule)  # type: ignore[attr-defined]
        steps = steps_left(trainer, length, done)
        left = None if steps is None else -(-steps // length.steps)
        line = f"epoch {done:>3}" + ("" if left is None else f"/{done + left}")
        for split, name in SPLIT_NAMES.items():
            loss, accuracy = (getattr(record, f"{split}_{what}") for what in ("loss", "acc"))
            if accuracy is not None:
                line += f"  {name} loss {loss:.4f} accuracy {accuracy:6.1%}{values_of(record.own, f'{split}_')}"
        line += f"  {record.seconds:.1f} s"
        if left is not None:
            usual = median(each.seconds for each in recorder_of(trainer).records[-RECENT:])
            line += f", {duration(usual * left)} left"
        print(line, flush=True)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print why training ended."""
        if trainer.is_global_zero:
            print(f"ended      {reason(trainer)}", flush=True)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print that the test has begun."""
        self._test_started = self._said = time.monotonic()
        if trainer.is_global_zero and self._lines and any(trainer.num_test_batches):
            network = Path(trainer.ckpt_path).name if trainer.ckpt_path else "the last weights"
            print(f"testing    {network}", flush=True)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        """Print how far the test is, every 10 seconds."""
        now = time.monotonic()
        if trainer.is_global_zero and self._lines and now - self._said >= PAUSE:
            self._said = now
            done, batches = batch_idx + 1, int(trainer.num_test_batches[0])
            left = duration((now - self._test_started) * (batches - done) / done)
            print(f"testing    {done:,} of {batches:,} batches, {left} left", flush=True)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prepare the line about the test."""
        images = int(pl_module.test_confusion.compute().sum())  # type: ignore[operator, union-attr]
        if not trainer.is_global_zero:
            return
        data = trainer.datamodule.description()  # type: ignore[attr-defined]
        metrics = trainer.callback_metrics
        own = {f"test_{name}": float(metrics[f"test_{name}"]) for name in pl_module.own_metrics}  # type: ignore[union-attr]
        further = values_of(own, ", test_")
        why = "no checkpoint was kept" if recorder_of(trainer).best else "no validation chose the best ones"
        weights = "" if trainer.ckpt_path else f", with the last weights: {why}"
        self._result = (
            f"accuracy {metrics['test_acc']:.2%}, loss {metrics['test_loss']:.4f}{further} "
            f"on {out_of(images, data['test_available'])} test images of {data['name']}{weights}"
        )

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Print the closing lines, below the progress bar."""
        if stage != "test" or not trainer.is_global_zero:
            return
        print(f"test       {self._result or f'not done: {untested(trainer)}'}")
        if (times := clock_of(trainer).times) and times.training:
            each = ", ".join(f"{name} {duration(taken)}" for name, taken in vars(times).items() if taken is not None)
            print(f"time       {duration(times.total)}: {each}")
        if self._logger:
            kept = ", ".join(path.name for path in self._logger.files.results)
            print(f"kept       {self._logger.folder}: {kept}")
            logs = shlex.quote(str(self._logger.save_dir))
            print(f"           tensorboard --logdir {logs} --host localhost", flush=True)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Print where the run is if Ctrl-C ended it at once."""
        if trainer.is_global_zero and isinstance(exception, KeyboardInterrupt) and self._logger:
            print(f"interrupted; what there is so far is in {self._logger.folder}", file=sys.stderr)


class TerminalBar(RichProgressBar):
    """Lightning's progress bar, with epochs from 1, and without the version number, which it would cut short."""

    def _get_train_description(self, current_epoch: int) -> str:
        last = self.trainer.max_epochs or -1
        description = f"Epoch {current_epoch + 1}" + (f"/{last}" if last > 0 else "")
        return description.ljust(len(self.validation_description))

    def get_metrics(self, *args: Any) -> dict[str, int | str | float | dict[str, float]]:
        return {name: value for name, value in super().get_metrics(*args).items() if name != "v_num"}


class LayerTable(Callback):
    """Print the network as a table of layers, each with its output for one image and its parameters."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Precision .* is not supported by the model summary")
            summary = ModelSummary(pl_module, max_depth=2)
        title = f"{type(pl_module).__name__}, {summary.total_parameters:,} parameters"
        table = Table("layer", "type", title=title, title_justify="left")
        for column in ("output", "parameters"):
            table.add_column(column, justify="right")
        columns = (summary.layer_names, summary.layer_types, summary.out_sizes, summary.param_nums)
        for name, kind, sizes, parameters in zip(*columns, strict=True):
            if name.startswith("network."):
                size = " x ".join(map(str, sizes[1:]))
                number = f"{parameters:,}" if parameters else ""
                table.add_row(Text(name.removeprefix("network.")), Text(kind), size, number)  # no markup
        rich.print(table)


def values_of(metrics: dict[str, float], before: str) -> str:
    """Return the own metrics of a split, such as `` f1 0.4123``. ``before`` ends in the split's prefix, as ``val_``."""
    between, _, split = before.rpartition(" ")
    return "".join(
        f"{between} {name.removeprefix(split)} {value:.4f}" for name, value in metrics.items() if name.startswith(split)
    )


def data_lines(data: dict[str, Any]) -> str:
    """Return the lines about the data, from a ``CIFAR10DataModule``'s description."""
    warning = (
        "NOT CIFAR-10: this run is on the stand-in, synthetic images.\nIts accuracies say nothing about CIFAR-10.\n"
    )
    training = f"augmentation {data['augment']}"
    training += "".join(f", {name} {data[name]:g}" for name in ("cutout", "mixup", "cutmix") if data[name])
    if data["label_noise"]:
        training += f"; {data['label_noise']:.0%} of the training labels drawn at random"
    subset = f", subset {data['subset']}" if data["subset"] else ""
    return (warning if data["source"] == "synthetic" else "") + (
        f"data       {data['name']}, split {data['split']}{subset}: {data['train_size']:,} training, "
        f"{data['val_size']:,} validation, "
        f"{out_of(data['test_size'], data['test_available'])} test images; {training}\n"
        f"           fingerprint {data['fingerprint'][:16]}"
    )


def _device(trainer: Trainer, pl_module: LightningModule) -> str:
    device: Any = pl_module.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()
    if trainer.world_size > 1:
        return f"{trainer.world_size} processes, process 0 on {name}"
    threads = torch.get_num_threads()
    return f"{name}, {threads} thread{'s' * (threads > 1)}" if device.type == "cpu" else name
