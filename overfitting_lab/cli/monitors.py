"""Metrics that callbacks and schedules monitor: each must be logged, and ``mode`` must be the right direction."""

import difflib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint
from torch.optim.lr_scheduler import ReduceLROnPlateau

from lightning_modules import ImageClassifier
from lightning_modules.errors import ModelError
from lightning_modules.schedules import TrainerNeededError, optimizer_and_schedule
from overfitting_lab.runs.epochs import METRICS, is_maximized

OURS = ("lightning_modules", "overfitting_lab", "lightning")  # packages of which all logged names are known


class Monitor(NamedTuple):
    """A metric that something monitors."""

    who: str
    flag: str  # of its settings, without ``.monitor`` and ``.mode``
    metric: str
    mode: str | None  # min or max, if it has a direction
    by: Any  # the callback or schedule


def check_monitors(trainer: Trainer, model: ImageClassifier, given: Sequence[Callback], chooses_best: str) -> None:
    """Refuse a monitor that cannot work, before the first step.

    ``given`` are the configured callbacks. Without a run's folder, the Trainer lacks some of them. ``chooses_best`` is
    the metric that chooses the best checkpoint.

    A network or callback from outside this project may log more than the known metrics. With such a class, an unknown
    name is not refused here. The callback or schedule that monitors it reports it after the first validation.

    Raises:
        ValueError: if nothing logs the metric when it is needed, or if the direction is wrong.
    """
    callbacks: list[Callback] = [*trainer.callbacks]  # type: ignore[attr-defined]
    callbacks += [callback for callback in given if callback not in callbacks]
    all_known = all(type(each).__module__.partition(".")[0] in OURS for each in (model, *callbacks))
    choices = [name for name in model.monitored if name.startswith("val_")]
    if chooses_best not in choices:
        raise ValueError(
            f"--monitor {chooses_best}: no validation measures it; give one of {', '.join(choices)}, or add a metric "
            "by --model.metrics"
        )
    for monitor in _monitors(callbacks, model):
        if monitor.metric.startswith("probe_"):
            other = monitor.metric.replace("probe", "val", 1)
            raise ValueError(
                f"{monitor.who} monitors {monitor.metric!r}, which not every epoch measures; "
                f"give --{monitor.flag}.monitor={other}"
            )
        if all_known and not _is_logged(monitor, callbacks, model.monitored):
            near = difflib.get_close_matches(monitor.metric, model.monitored, n=1)
            raise ValueError(
                f"{monitor.who} monitors {monitor.metric!r}, which nothing logs in training; "
                f"logged are {', '.join(model.monitored)}; give --{monitor.flag}.monitor={near[0] if near else 'NAME'}"
            )
        _check_mode(monitor, model.monitored)
        patience = getattr(monitor.by, "patience", None)
        if isinstance(patience, int) and patience < 0:
            raise ValueError(f"--{monitor.flag}.patience of {monitor.who} must be at least 0, not {patience}")
        _check_moment(monitor, trainer)


def _monitors(callbacks: list[Callback], model: ImageClassifier) -> Iterator[Monitor]:
    for callback in callbacks:
        if isinstance(metric := getattr(callback, "monitor", None), str):
            mode = getattr(callback, "mode", None)
            yield Monitor(type(callback).__name__, "trainer.callbacks", metric, mode, callback)
    try:
        _, schedule = optimizer_and_schedule(model)
    except TrainerNeededError:
        return
    except ModelError as error:
        raise ValueError(str(error)) from error
    scheduler = schedule.get("scheduler")
    if isinstance(scheduler, ReduceLROnPlateau):
        yield Monitor("ReduceLROnPlateau", "model.lr_scheduler", schedule["monitor"], scheduler.mode, scheduler)


def _is_logged(monitor: Monitor, callbacks: list[Callback], logged: Sequence[str]) -> bool:
    counted = isinstance(monitor.by, ModelCheckpoint) and monitor.metric in ("epoch", "step")
    rates = any(isinstance(callback, LearningRateMonitor) for callback in callbacks)
    return monitor.metric in logged or counted or (rates and monitor.metric.startswith("lr-"))


def _check_mode(monitor: Monitor, logged: Sequence[str]) -> None:
    if monitor.metric not in logged or monitor.mode not in ("min", "max"):
        return
    mode = "max" if is_maximized(monitor.metric) else "min"
    kind = "this metric"
    if monitor.metric in METRICS:
        kind = "an accuracy" if mode == "max" else "a loss"
    if monitor.mode != mode:
        raise ValueError(
            f"{monitor.who} monitors {monitor.metric} with mode={monitor.mode}, but {kind} is to be {mode}imized; "
            f"give --{monitor.flag}.mode={mode}"
        )


def _check_moment(monitor: Monitor, trainer: Trainer) -> None:
    """Check that the metric is fresh whenever it is read."""
    every = trainer.check_val_every_n_epoch or 1
    validates = trainer.limit_val_batches != 0 and not 0 < (trainer.max_epochs or -1) < every
    if monitor.metric.startswith("val_") and not validates:
        raise ValueError(
            f"{monitor.who} monitors {monitor.metric!r}, but the run has no validation; monitor train_loss or "
            "train_acc, or change --trainer.limit_val_batches or --trainer.check_val_every_n_epoch"
        )
    if not isinstance(monitor.by, EarlyStopping | ModelCheckpoint):
        return
    setting = "check_on_train_epoch_end" if isinstance(monitor.by, EarlyStopping) else "save_on_train_epoch_end"
    at_epoch_end = getattr(monitor.by, f"_{setting}")
    # A Trainer that validates every so many minutes has no interval.
    each_epoch = getattr(trainer, "val_check_interval", None) == 1.0 and trainer.check_val_every_n_epoch == 1
    if monitor.metric.startswith("train_") and not (each_epoch if at_epoch_end is None else at_epoch_end):
        raise ValueError(
            f"{monitor.who} reads {monitor.metric!r} after a validation, before the epoch's end logs it; "
            f"give --{monitor.flag}.{setting}=true"
        )
    if monitor.metric.startswith("val_") and at_epoch_end and every > 1:
        raise ValueError(
            f"{monitor.who} reads {monitor.metric!r} at every epoch's end, but only every {every} epochs validate; "
            f"leave --{monitor.flag}.{setting} out"
        )
