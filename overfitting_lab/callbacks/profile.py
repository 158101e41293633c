"""The folder that the Trainer's profiler writes to, and a profiler that does nothing."""

import contextlib

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.profilers import PassThroughProfiler

from overfitting_lab.callbacks.logger import RunLogger

NOTHING = contextlib.nullcontext()


class NoProfiler(PassThroughProfiler):
    """Measure nothing. Lightning's own class makes a generator for every hook of every callback in every step."""

    def profile(self, action_name: str) -> contextlib.AbstractContextManager[None]:  # type: ignore[override]
        return NOTHING


class ProfileFolder(Callback):
    """Let the profiler write into the run's folder, unless it has a folder of its own."""

    def __init__(self, logger: RunLogger) -> None:
        self._logger = logger

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        profiler = trainer.profiler  # type: ignore[attr-defined]
        if profiler.dirpath == self._logger.save_dir:  # Lightning's choice, which all runs share
            profiler.dirpath = self._logger.folder
