"""What a person sees of a run in the terminal."""

import sys
import time
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

import rich
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.utilities.model_summary.model_summary import ModelSummary
from rich.table import Table

from overfitting_lab.callbacks.logger import RunLogger


class Console(Callback):
    """Says what is trained on what, where it goes, and how it ended; where there is no terminal, a line an epoch.

    Args:
        logger: the run's logger; none where nothing is kept.
        lines: whether to print a line an epoch, as befits a log file; a terminal has a progress bar instead.
        precision_reason: why the precision is what it is.
    """

    def __init__(self, logger: RunLogger | None, lines: bool, precision_reason: str) -> None:
        self._logger = logger
        self._lines = lines
        self._precision_reason = precision_reason
        self._epoch_started = 0.0
        self._ending = ""
        self._validated = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Describes the run."""
        if not trainer.is_global_zero:
            return
        print(data_lines(trainer.datamodule.description()))  # type: ignore[attr-defined]
        print(f"precision  {trainer.precision} ({self._precision_reason})")
        print(f"device     {_device(trainer, pl_module)}")
        print(f"run        {self._logger.folder if self._logger else 'nothing is kept'}", flush=True)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock, and says where a run goes on."""
        self._epoch_started = time.perf_counter()
        if trainer.is_global_zero and trainer.global_step:
            print(f"resumed    in epoch {trainer.current_epoch + 1} after step {trainer.global_step}", flush=True)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the epoch's clock."""
        self._epoch_started = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes that the epoch has validation metrics of its own."""
        self._validated = not trainer.sanity_checking

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prints the epoch's line."""
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}  # every process must ask
        if not (trainer.is_global_zero and self._lines):
            return
        shown = {"train": "training", "val": "validation"} if self._validated else {"train": "training"}
        self._validated = False
        seconds = time.perf_counter() - self._epoch_started
        last = trainer.max_epochs or -1
        line = f"epoch {trainer.current_epoch + 1:>3}" + (f"/{last}" if last > 0 else "")
        for split, name in shown.items():
            line += f"  {name} loss {metrics[f'{split}_loss']:.4f} accuracy {metrics[f'{split}_acc']:6.1%}"
        line += f"  {seconds:.1f} s"
        if last > 0:
            left = timedelta(seconds=round(seconds * (last - trainer.current_epoch - 1)))
            line += f", {left} left"
        print(line, flush=True)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Finds what came of it."""
        images = int(pl_module.test_confusion.compute().sum())  # type: ignore[operator, union-attr]
        if not trainer.is_global_zero:
            return
        data = trainer.datamodule.description()  # type: ignore[attr-defined]
        metrics = trainer.callback_metrics
        self._ending = (
            f"test       accuracy {metrics['test_acc']:.2%}, loss {metrics['test_loss']:.4f} "
            f"on {images:,} test images of {data['name']}"
        )
        if self._logger:
            self._ending += (
                f"\nkept       {self._logger.folder}: {', '.join(_kept(self._logger.folder))}"
                f"\n           tensorboard --logdir {self._logger.save_dir} --host localhost"
            )

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Says what came of it, below where the progress bar was."""
        if self._ending:
            print(self._ending, flush=True)
            self._ending = ""

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Says where a run is that Ctrl-C ended at once."""
        if trainer.is_global_zero and isinstance(exception, KeyboardInterrupt) and self._logger:
            print(f"interrupted; what there is so far is in {self._logger.folder}", file=sys.stderr)


class ProgressBar(RichProgressBar):
    """Lightning's bar without the run's version, which it cuts to four characters."""

    def get_metrics(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """What stands behind the bar."""
        return {name: value for name, value in super().get_metrics(trainer, pl_module).items() if name != "v_num"}


class LayerTable(Callback):
    """Prints the network as a table of layers: what leaves each for one image, and its parameters."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prints the table."""
        if not trainer.is_global_zero:
            return
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Precision .* is not supported by the model summary")
            summary = ModelSummary(pl_module, max_depth=2)
        table = Table(
            title=f"{type(pl_module).__name__}, {summary.total_parameters:,} parameters", title_justify="left"
        )
        for column in ("layer", "type", "output", "parameters"):
            table.add_column(column, justify="left" if column in ("layer", "type") else "right")
        for name, kind, sizes, parameters in zip(
            summary.layer_names, summary.layer_types, summary.out_sizes, summary.param_nums, strict=True
        ):
            if name.startswith("network."):
                size = " x ".join(str(extent) for extent in sizes[1:])
                table.add_row(name.removeprefix("network."), kind, size, f"{parameters:,}" if parameters else "")
        rich.print(table)


def data_lines(data: dict[str, Any]) -> str:
    """What is said of the data: of a ``CIFAR10DataModule``'s description."""
    warning = (
        "NOT CIFAR-10: this run is on the stand-in, drawn images, because it was asked for or because\n"
        "CIFAR-10 is neither there nor reachable. Its accuracies say nothing about CIFAR-10.\n"
    )
    noise = f"; {data['label_noise']:.0%} of the training labels drawn at random" if data["label_noise"] else ""
    return (
        f"{warning if data['source'] == 'synthetic' else ''}"
        f"data       {data['name']}, split {data['split']}: {data['train_size']:,} training, "
        f"{data['val_size']:,} validation, {data['test_size']:,} test images; augmentation {data['augment']}"
        f"{noise}\n"
        f"           fingerprint {data['fingerprint'][:16]}"
    )


def _kept(folder: Path) -> list[str]:
    names = ("curves.png", "summary.json", "metrics.csv", "checkpoints", "weights.pth")
    return [name for name in names if (folder / name).exists()]


def _device(trainer: Trainer, pl_module: LightningModule) -> str:
    device: Any = pl_module.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()
    if trainer.world_size > 1:
        return f"{trainer.world_size} processes, process 0 on {name}"
    threads = torch.get_num_threads()
    return f"{name}, {threads} thread{'s' * (threads > 1)}" if device.type == "cpu" else name
