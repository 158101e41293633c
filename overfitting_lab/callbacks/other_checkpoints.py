"""Checkpoints of Lightning's own ``ModelCheckpoint`` beside the run's checkpoints."""

import warnings

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from overfitting_lab.callbacks.logger import RunLogger
from overfitting_lab.runs.checkpoints import load_checkpoint
from overfitting_lab.runs.files import RunError


class OtherCheckpoints(Callback):
    """Give each ``ModelCheckpoint`` without a ``dirpath`` a folder in which it overwrites no checkpoint of the run.

    Lightning would choose the folder of ``best.ckpt`` and ``last.ckpt``.
    """

    def __init__(self, logger: RunLogger) -> None:
        self._logger = logger

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Choose the folder. The logger must have claimed the run's folder."""
        warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")  # in a resumed run
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
                callback.dirpath = str(self._logger.files.others.resolve())

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Discard the files that a run wrote after the checkpoint from which it resumes: it will write them again."""
        if not trainer.is_global_zero:
            return
        for path in self._logger.files.others.rglob("*.ckpt"):
            try:
                written_later = load_checkpoint(path)["global_step"] > trainer.global_step
            except RunError:  # a link whose target is gone
                written_later = True
            if written_later:
                path.unlink()
