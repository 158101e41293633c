"""The loggers beside the run's own: their settings, the record of their runs, and how they are resumed."""

import csv
import io
import json
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from overfitting_lab.callbacks.epochs import recorder_of
from overfitting_lab.callbacks.guarded import given_class
from overfitting_lab.callbacks.logger import RunLogger
from overfitting_lab.runs.epochs import EpochRecord
from overfitting_lab.runs.files import write_text
from overfitting_lab.runs.imports import class_path
from overfitting_lab.runs.notes import attempt

UNWRITTEN = 30  # seconds of a killed run that a logger may not have written: W&B writes every 15 s


class FurtherLoggers(Callback):
    """Serve the loggers of the Trainer beside the first one, which is the run's own.

    Each gets hyper-parameters: the settings by flag, which ``settings`` returns, and the data's fingerprint.
    ``loggers.json`` in the run's folder names each logger's class and run, so that a resumed run resumes them too.
    """

    def __init__(self, logger: RunLogger, settings: Callable[[], dict[str, Any]]) -> None:
        self._logger = logger
        self._settings = settings

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the settings, and record and print where the loggers write."""
        loggers = trainer.loggers[1:]
        if not trainer.is_global_zero or not loggers:
            return
        records = [{"class_path": class_path(given_class(logger)), "version": logger.version} for logger in loggers]
        write_text(self._logger.files.loggers, json.dumps(records, indent=2) + "\n")
        fingerprint = trainer.datamodule.description()["fingerprint"]  # type: ignore[attr-defined]
        settings = {**self._settings(), "data.fingerprint": fingerprint}
        for logger in loggers:
            place, name = logger.log_dir or logger.save_dir, given_class(logger).__name__
            print(f"logger     {name}, run {logger.version}" + (f" in {place}" if place else ""))
            with attempt(f"the logger {name}"):
                if trainer.enable_autolog_hparams:
                    log_settings(logger, settings)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Discard what a resumed run logs again, if the logger can. Log the last epochs, which may be missing."""
        if not trainer.is_global_zero or not self._logger.resumed:
            return
        last = unwritten(recorder_of(trainer).records)
        for logger in trainer.loggers[1:]:
            with attempt(f"the earlier rows of {given_class(logger).__name__}"):
                if isinstance(logger, CSVLogger):
                    discard_rows(Path(logger.log_dir, "metrics.csv"), since=trainer.global_step, of=last)
                elif isinstance(logger, TensorBoardLogger):
                    logger.experiment.close()
                    logger.experiment.purge_step = trainer.global_step  # of the file that it opens next
            for step, metrics in last.items():
                logger.log_metrics(metrics, step)
                logger.save()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "test":
            self._finish(trainer, exit_code=0)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._finish(trainer, exit_code=1)

    @staticmethod
    def _finish(trainer: Trainer, exit_code: int) -> None:
        """End the W&B run, so that a second run in this process gets its own. Lightning waits for the process's end."""
        if trainer.is_global_zero and any(isinstance(logger, WandbLogger) for logger in trainer.loggers):
            import wandb  # not at the top: it need not be installed

            if wandb.run is not None:
                wandb.finish(exit_code=exit_code)


class AppendingWriter(ExperimentWriter):
    """A ``CSVLogger``'s writer that adds to the rows of ``metrics.csv``, instead of deleting the file."""

    def __init__(self, log_dir: str) -> None:
        super().__init__(log_dir)
        path = Path(self.metrics_file_path)
        if path.is_file():
            with path.open(encoding="utf-8", newline="") as file:
                self.metrics_keys = next(csv.reader(file), [])

    def _check_log_dir_exists(self) -> None:
        """Do nothing: keep the files in the folder."""


def resume_loggers(loggers: list[Logger]) -> None:
    """Prevent a resumed run's loggers from deleting their earlier logs. Call this before the Trainer uses them."""
    for logger in loggers:
        if isinstance(logger, CSVLogger):
            logger._experiment = AppendingWriter(logger.log_dir)


def log_settings(logger: Logger, settings: dict[str, Any]) -> None:
    """Log settings as hyper-parameters. MLflow cannot change one: new values of a resumed run become tags."""
    if isinstance(logger, MLFlowLogger):
        client, run = logger.experiment, str(logger.run_id)
        before = client.get_run(run).data.params
        for name, value in settings.items():
            if name in before and before[name] != str(value)[:250]:
                client.set_tag(run, name, value)
        settings = {name: value for name, value in settings.items() if name not in before}
    logger.log_hyperparams(settings)


def unwritten(records: Sequence[EpochRecord]) -> dict[int, dict[str, float]]:
    """Return the metrics of the last epochs by the step at which Lightning logs them."""
    last: dict[int, dict[str, float]] = {}
    seconds = 0.0
    for record in reversed(records):
        if seconds < UNWRITTEN:
            last = {record.step - 1: record.measured} | last
        seconds += record.seconds
    return last


def discard_rows(metrics: Path, *, since: int, of: Collection[int]) -> None:
    """Discard a ``CSVLogger``'s rows since a step, the rows of epochs whose last step is in ``of``, and cut rows."""
    if not metrics.is_file():  # the run was killed before its first row, or the rows are in the cloud
        return
    with metrics.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file)
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, rows.fieldnames or [])
        writer.writeheader()
        for row in rows:
            if not (row.get("step") or "").isdigit() or None in row.values():  # a full disk has cut it
                continue
            again = int(row["step"]) in of and (row.get("train_loss") or row.get("val_loss"))
            if int(row["step"]) < since and not again:
                writer.writerow(row)
    write_text(metrics, text.getvalue())
