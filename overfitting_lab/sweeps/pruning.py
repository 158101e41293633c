"""Reports of a trial's validations to its study, which may end the trial early."""

import math
from typing import Any

import optuna
from lightning.pytorch import Callback, LightningModule, Trainer

from overfitting_lab.callbacks.epochs import recorder_of
from overfitting_lab.callbacks.logger import RunLogger
from overfitting_lab.runs.epochs import Monitor, best_epoch, value_of
from overfitting_lab.runs.notes import attempt
from overfitting_lab.sweeps.names import shown

PRUNED = "pruned: "  # begins the reason of a run that its study ended early
STARTUP = 5  # trials that must complete before one is pruned
WARMUP = 10  # epochs that every trial trains if the number of epochs is unknown


def pruner(epochs: int | None) -> optuna.pruners.BasePruner:
    """Return the pruner of a search. ``epochs`` is the length of a trial; ``None`` if it is unknown.

    It is the median rule (Golovin et al. 2017, Google Vizier, sec. 3.2): a trial ends if its best value so far is worse
    than the median, at the same epoch, of the trials that trained to their end. Every trial trains a third of its
    epochs first, because settings that regularize learn more slowly at first and reach more in the end. For the same
    reason, the pruner is not Hyperband, which compares trials after a few epochs and needs many more of them.
    """
    warmup = math.ceil(epochs / 3) if epochs and epochs > 0 else WARMUP
    return optuna.pruners.MedianPruner(STARTUP, warmup)


class TrialReport(Callback):
    """Report each epoch's validation to the study. Stop training if the study prunes the trial.

    This callback must stand directly after ``EpochRecorder``. A resumed run does not report an epoch twice. If the
    storage fails, the run continues. ``trial`` is the run's trial, and ``monitor`` is the metric to report.
    """

    def __init__(self, trial: optuna.Trial, monitor: Monitor, logger: RunLogger) -> None:
        self._trial = trial
        self._monitor = monitor
        self._logger = logger
        self._reported: set[int] = set()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tell the study the folder of the run."""
        if trainer.is_global_zero:
            self._trial.set_user_attr("run", self._logger.folder.name)
            known = self._trial.study.get_trials(deepcopy=False)[self._trial.number]
            self._reported = set(known.intermediate_values)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report the epoch, and stop if the trial is pruned."""
        reason = ""
        if trainer.is_global_zero:
            with attempt("the trial's report"):
                reason = self._report(trainer)
        if reason := trainer.strategy.broadcast(reason):
            trainer.should_stop = True
            trainer.stopped_by = reason  # type: ignore[attr-defined]

    def _report(self, trainer: Trainer) -> str:
        """Report the epoch that has ended. Return the reason to prune the trial, or an empty text."""
        records = recorder_of(trainer).records
        last = records[-1]
        if last.val_acc is None:
            return ""
        if last.epoch not in self._reported:
            self._reported.add(last.epoch)
            value = value_of(last, self._monitor)
            self._trial.report(math.nan if value is None else value, last.epoch)
        if trainer.current_epoch + 1 == trainer.max_epochs or not self._trial.should_prune():
            return ""
        best: Any = value_of(best_epoch(records, self._monitor) or last, self._monitor)
        return (
            f"{PRUNED}after epoch {last.epoch + 1} its best {self._monitor}, {shown(best, self._monitor)}, is worse "
            "than the median, at that epoch, of the trials that trained to their end"
        )
