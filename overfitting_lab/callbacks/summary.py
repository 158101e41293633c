"""The files that a run writes about itself: config.yaml, metrics.csv, summary.json, curves.png and weights.pth."""

import contextlib
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from overfitting_lab.callbacks.epochs import plain, recorder_of
from overfitting_lab.callbacks.logger import RunLogger
from overfitting_lab.callbacks.recovery import StoppedError
from overfitting_lab.runs.checkpoints import load_checkpoint
from overfitting_lab.runs.epochs import best_epoch, write_records
from overfitting_lab.runs.figures import curves, save_figure
from overfitting_lab.runs.files import replace_file, write_text
from overfitting_lab.runs.notes import attempt, in_words, notes
from overfitting_lab.runs.summary import DataSummary, ModelSummary, Summary, TestSummary


class RunSummary(Callback):
    """Write the run's files.

    ``config.yaml`` and ``summary.json`` are written at the start, ``summary.json`` also after every validation and
    epoch and at the end. ``metrics.csv`` gets a row every epoch. ``curves.png`` and ``weights.pth``, the weights of the
    best checkpoint, are written at the end.

    ``config`` returns the complete configuration, ``diagnosis`` the findings of the doctor. ``facts`` are fields of
    :class:`Summary` that are known before the run.
    """

    def __init__(
        self,
        logger: RunLogger,
        config: Callable[[], str],
        facts: dict[str, Any],
        diagnosis: Callable[[], list[dict[str, Any]]] = list,
    ) -> None:
        self._logger = logger
        self._config = config
        self._facts = facts
        self._diagnosis = diagnosis
        self._summary: Summary | None = None
        self._files_restored = False
        self._started = self._seconds_before = 0.0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Tell every process the run's folder."""
        self._logger.share(trainer.strategy)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what is known before the first step."""
        self._started = time.perf_counter()
        if not trainer.is_global_zero:
            return
        optimizer = trainer.optimizers[0]
        settings = {key: value for key, value in optimizer.defaults.items() if isinstance(value, float | int | str)}
        self._summary = Summary(
            **self._facts,
            status="running",
            data=DataSummary(**trainer.datamodule.description()),  # type: ignore[attr-defined]
            model=ModelSummary(class_path(pl_module), sum(weights.numel() for weights in pl_module.parameters())),
            optimizer={"class_path": class_path(optimizer), **settings},
            device=pl_module.device.type,
            precision=trainer.precision,
            world_size=trainer.world_size,
        )
        write_text(self._logger.files.config, self._config())
        self._update(trainer)

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self._seconds_before + time.perf_counter() - self._started}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._seconds_before = state_dict["seconds"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Cut the files and curves of a resumed run off at its checkpoint."""
        self._files_restored = True
        if trainer.is_global_zero:
            records, metrics = recorder_of(trainer).records, self._logger.files.metrics
            if records or metrics.exists():
                self._logger.discard_events_after(trainer.global_step, records)
            replace_file(metrics, lambda path: write_records(path, records))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Bring the summary up to date."""
        if trainer.is_global_zero and not trainer.sanity_checking:
            self._update(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            write_records(self._logger.files.metrics, recorder_of(trainer).records[-1:], mode="a")
            self._update(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Complete the files."""
        if not self._files_restored:  # the checkpoint was of the run's end: training did not start
            self.on_train_start(trainer, pl_module)
        if trainer.is_global_zero:
            self._end(trainer, status="finished")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Write how the run ended, and the curves up to there."""
        if not (trainer.is_global_zero and trainer.state.fn == "fit" and self._summary):
            return
        by_user = isinstance(exception, KeyboardInterrupt)
        reason = "interrupted by the user" if by_user else in_words(exception)
        status = "interrupted" if by_user or isinstance(exception, StoppedError) else "failed"
        with contextlib.suppress(OSError):  # a full disk may be the reason
            self._end(trainer, status=status, reason=reason)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add the test's result."""
        images = int(pl_module.test_confusion.compute().sum())  # type: ignore[operator, union-attr]
        if self._summary is not None:
            checkpoint = Path(trainer.ckpt_path).stem if trainer.ckpt_path else "last"
            loss, accuracy = (plain(trainer.callback_metrics[name]) for name in ("test_loss", "test_acc"))
            self._write(replace(self._summary, test=TestSummary(checkpoint, loss, accuracy, images)))

    def _end(self, trainer: Trainer, **changes: Any) -> None:
        self._update(trainer, **changes)
        assert self._summary is not None
        records, files = recorder_of(trainer).records, self._logger.files
        if records:
            data = self._summary.data
            title = f"{self._summary.experiment}: {data.train_size:,} training images of {data.name}"
            with attempt("curves.png"):
                save_figure(files.curves, curves(records, title))
        if files.best.is_file():
            state = load_checkpoint(files.best)["state_dict"]
            prefix = "network."
            network = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
            replace_file(files.weights, lambda path: torch.save(network, path))

    def _update(self, trainer: Trainer, **changes: Any) -> None:
        assert self._summary is not None
        recorder = recorder_of(trainer)
        best = best_epoch(recorder.records)
        last = next((record for record in reversed(recorder.records) if record.val_acc is not None), None)
        self._write(
            replace(
                self._summary,
                epochs=len(recorder.records),
                global_step=trainer.global_step,
                seconds=round(self._seconds_before + time.perf_counter() - self._started, 3),
                train_images_per_second=recorder.images_per_second,
                best=best and best.metrics,
                last=last and last.metrics,
                generalization_gap=last.gap if last else None,
                diagnosis=self._diagnosis(),
                **changes,
            )
        )

    def _write(self, summary: Summary) -> None:
        self._summary = summary = replace(summary, notes=notes())
        write_text(self._logger.files.summary, summary.to_json())


def class_path(thing: object) -> str:
    """Return the import path of a thing's class, in its shortest form: ``torch.optim.Adam``."""
    kind = type(thing)
    package = kind.__module__.rpartition(".")[0]
    public = getattr(sys.modules.get(package), kind.__name__, None) is kind
    return f"{package if public else kind.__module__}.{kind.__name__}"
