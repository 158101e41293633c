"""The schedule of gradient accumulation in a resumed run."""

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler


class AccumulationOnResume(Callback):
    """Set the accumulation of the epoch within which a run is resumed, which Lightning sets when an epoch starts.

    This callback must stand behind the schedule, which refuses a Trainer that accumulates before training starts.
    """

    def __init__(self, schedule: GradientAccumulationScheduler) -> None:
        self._schedule = schedule

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._schedule.on_train_epoch_start(trainer)
