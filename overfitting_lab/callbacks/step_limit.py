"""The limit ``max_steps`` when a run is resumed from the end of an epoch."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from overfitting_lab.callbacks.progress import is_of_epochs_end


class StepLimit(Callback):
    """Let a run with ``max_steps`` begin the next epoch if its checkpoint is of an epoch's end.

    With such a limit, Lightning 2.6 resumes within the epoch that has ended, and ends it once more. So the limit is
    removed while Lightning restores its loops. This callback must stand before the callbacks that read the limit.
    """

    def __init__(self) -> None:
        self._ended = False  # the checkpoint's epoch
        self._limit: int | None = None

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        left = trainer.max_steps == -1 or checkpoint["global_step"] < trainer.max_steps
        self._ended = left and is_of_epochs_end(checkpoint)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove the limit until training starts."""
        if self._ended:
            self._limit = trainer.max_steps
            trainer.fit_loop.epoch_loop.max_steps = -1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the limit."""
        if self._limit is not None:
            trainer.fit_loop.epoch_loop.max_steps = self._limit
            self._limit = None
