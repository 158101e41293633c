"""The folder of the Trainer's profiler."""

from lightning.pytorch import Callback, LightningModule, Trainer

from overfitting_lab.callbacks.logger import RunLogger


class ProfileFolder(Callback):
    """Let the profiler write into the run's folder, unless it has a folder of its own."""

    def __init__(self, logger: RunLogger) -> None:
        self._logger = logger

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        profiler = trainer.profiler  # type: ignore[attr-defined]
        if profiler.dirpath == self._logger.save_dir:  # Lightning's choice, which all runs share
            profiler.dirpath = self._logger.folder
