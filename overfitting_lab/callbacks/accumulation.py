"""The schedule of gradient accumulation in a resumed run."""

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler


class AccumulationOnResume(Callback):
    """Set the number of accumulated batches when a run is resumed within an epoch.

    Lightning sets it only when an epoch starts. This callback must stand after the schedule, which refuses a Trainer
    that accumulates before training starts.
    """

    def __init__(self, schedule: GradientAccumulationScheduler) -> None:
        self._schedule = schedule

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._schedule.on_train_epoch_start(trainer)
