"""Checkpoints that survive a crash, and the checkpoint of the best epoch."""

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from overfitting_lab.callbacks.epochs import recorder_of
from overfitting_lab.callbacks.logger import RunLogger
from overfitting_lab.runs.files import replace_file


class CheckpointError(Exception):
    """A checkpoint cannot be written. The message names the file and the remedy."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Replace a checkpoint as a whole.

    Lightning's own class writes to ``$TMPDIR`` and moves the file. Across file systems a move is a copy, which can
    destroy the old checkpoint.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | os.PathLike[str], *_: Any, **__: Any) -> None:
        """Write the checkpoint.

        Raises:
            CheckpointError: if it cannot be written. The old checkpoint is still there.
        """
        target = Path(path)

        def save(new: Path) -> None:
            with new.open("wb") as file:
                torch.save(checkpoint, file)

        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            replace_file(target, save)
        except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
            raise CheckpointError(
                f"cannot write {target}: {_reason(error)}; what was there before is untouched. Make room, then resume "
                "with --resume"
            ) from error


class BestCheckpoint(Checkpoint):
    """Keep the weights of the best validation, which :class:`EpochRecorder` chooses, as ``best.ckpt``."""

    def __init__(self, logger: RunLogger) -> None:
        self._logger = logger

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Copy the best weights of another run that this one starts from; without them, discard their validation."""
        recorder = recorder_of(trainer)
        if recorder.best is None:
            return
        best = self._logger.files.best
        before = Path(str(trainer.ckpt_path)).with_name(best.name)
        if trainer.is_global_zero and not best.is_file() and before.is_file():
            best.parent.mkdir(parents=True, exist_ok=True)
            replace_file(best, lambda path: shutil.copyfile(before, path))
        if not trainer.strategy.broadcast(best.is_file()):
            recorder.best = None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the weights if the validation is the best."""
        if not trainer.sanity_checking and recorder_of(trainer).is_best:
            trainer.save_checkpoint(self._logger.files.best, weights_only=True)


def _reason(error: OSError | RuntimeError) -> str:
    """Return the operating system's reason, which torch may have wrapped."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    return str(error).splitlines()[0]
