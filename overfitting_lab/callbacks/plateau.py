"""The schedule that reduces the learning rate on a plateau."""

import sys

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from lightning_modules.errors import ModelError
from lightning_modules.schedules import optimizer_and_schedule
from overfitting_lab.callbacks.epochs import recorder_of
from overfitting_lab.runs.epochs import value_of


class PlateauSchedule(Callback):
    """Step ``ReduceLROnPlateau`` in place of Lightning, and stop after its last reduction.

    Lightning steps it after the epoch's checkpoint is written, so that a resumed run would lose a step. This callback
    steps it at the end of an epoch, before the checkpoint callbacks, if the epoch measured the schedule's metric.

    With ``factor=0.1`` and 3 reductions this is the rule of Simonyan & Zisserman (2014, sec. 3.1): divide the rate by
    10 when validation accuracy stops improving, three times in all, then stop.

    Args:
        reductions: number of reductions that are allowed. The next one ends training; ``None`` never ends it.

    Raises:
        ValueError: if ``reductions`` is negative.
    """

    def __init__(self, reductions: int | None = 3) -> None:
        if reductions is not None and reductions < 0:
            raise ValueError(f"reductions must be at least 0, not {reductions}")
        self.reductions = reductions

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse to count the reductions of another schedule, before the run has its folder."""
        if stage != "fit" or self.reductions is None:
            return
        _, schedule = optimizer_and_schedule(pl_module)
        if not isinstance(schedule.get("scheduler"), ReduceLROnPlateau):
            raise MisconfigurationException(
                "PlateauSchedule.reductions needs lightning.pytorch.cli.ReduceLROnPlateau as model.lr_scheduler; "
                "with another schedule, leave the callback out: --trainer.callbacks null"
            )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the schedule over from Lightning."""
        for config in trainer.lr_scheduler_configs:
            if not isinstance(config.scheduler, ReduceLROnPlateau):
                continue
            config.frequency = sys.maxsize
            monitor = str(config.monitor)
            if monitor.startswith("val_") and not trainer.enable_validation:
                raise ModelError(
                    f"the learning-rate schedule monitors {monitor!r}, but the run has no validation; "
                    "set its monitor to train_loss or train_acc, or leave --trainer.limit_val_batches out"
                )

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Step the schedule, and stop if the rate was reduced once too often."""
        optimizer = trainer.optimizers[0]
        for config in trainer.lr_scheduler_configs:
            scheduler = config.scheduler
            if not isinstance(scheduler, ReduceLROnPlateau):
                continue
            value = self._measured(trainer, str(config.monitor))
            before, best = optimizer.param_groups[0]["lr"], scheduler.best
            on_the_brink = scheduler.num_bad_epochs == scheduler.patience and not scheduler.in_cooldown
            if value is not None:
                scheduler.step(value)
            rate = optimizer.param_groups[0]["lr"]
            last = optimizer.defaults["lr"] * scheduler.factor ** (self.reductions or 0)
            is_due = value is not None and on_the_brink and scheduler.best == best
            at_the_end = is_due and rate == before  # min_lr or eps has prevented the reduction
            if self.reductions is not None and (rate < 0.999 * last or at_the_end):
                trainer.should_stop = True

    @staticmethod
    def _measured(trainer: Trainer, monitor: str) -> float | None:
        """Return the epoch's value of a metric, which a user's class may have logged; ``None`` without a validation.

        Raises:
            ModelError: if nothing has logged it.
        """
        if monitor in trainer.lightning_module.monitored:  # type: ignore[operator]
            return value_of(recorder_of(trainer).records[-1], monitor)
        if monitor not in trainer.callback_metrics:
            choices = [name for name in trainer.callback_metrics if not name.startswith("probe_")]
            raise ModelError(
                f"the learning-rate schedule monitors {monitor!r}, which the epoch has not logged; "
                f"set its monitor to one of {', '.join(choices)}"
            )
        return float(trainer.callback_metrics[monitor])
