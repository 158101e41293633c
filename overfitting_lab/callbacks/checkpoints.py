"""Checkpoints that cannot be lost: written beside their place, flushed to the disk, then put there."""

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from overfitting_lab.callbacks.logger import RunLogger
from overfitting_lab.runs.files import replace_file


class CheckpointError(Exception):
    """A checkpoint cannot be written; the message names the file and the remedy."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint to a temporary file beside the target, has it on the disk, then renames it.

    Whenever the process or the machine dies, the target is the old file or the new one, never a part. Lightning's own
    writes to ``$TMPDIR`` and moves, which copies across file systems and so can destroy the old file.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        """Writes the checkpoint.

        Raises:
            CheckpointError: if it cannot be written; what was at ``path`` is still there.
        """
        target = Path(path)
        new = target.with_name(f".{target.name}.new")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with new.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            new.replace(target)
            _flush_folder(target.parent)
        except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
            new.unlink(missing_ok=True)
            raise CheckpointError(
                f"cannot write {target}: {_reason(error)}; what was there before is untouched. Make room, then go on "
                "with --resume"
            ) from error


class BestCheckpoint(Checkpoint):
    """Keeps the weights of the epoch with the highest validation accuracy, the first of equals, as ``best.ckpt``.

    Unlike Lightning's ``ModelCheckpoint`` it remembers the score alone and no path, so that a run's folder may be moved
    before the run goes on.

    Args:
        logger: the run's logger, which owns the folder; its ``checkpoints`` get the file.
    """

    MONITOR = "val_acc"

    def __init__(self, logger: RunLogger) -> None:
        self._logger = logger
        self._score = -1.0

    @property
    def path(self) -> Path:
        """The file, which is there after the first validation."""
        return self._logger.folder / "checkpoints" / "best.ckpt"

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes along the best weights of another run that this one goes on from; without them, forgets their score."""
        if self._score < 0:
            return
        if trainer.is_global_zero and not self.path.is_file():
            before = Path(str(trainer.ckpt_path)).with_name(self.path.name)
            if before.is_file():
                self.path.parent.mkdir(parents=True, exist_ok=True)
                replace_file(self.path, lambda path: shutil.copyfile(before, path))
        if not trainer.strategy.broadcast(self.path.is_file()):
            self._score = -1.0

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves the weights where they are better than any before."""
        score = float(trainer.callback_metrics[self.MONITOR])
        if not trainer.sanity_checking and score > self._score:
            self._score = score
            trainer.save_checkpoint(self.path, weights_only=True)

    def state_dict(self) -> dict[str, float]:
        """The highest accuracy so far."""
        return {"score": self._score}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        """Goes on from there."""
        self._score = state_dict["score"]


def _reason(error: OSError | RuntimeError) -> str:
    """The operating system's reason, which torch may have wrapped."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    return str(error).splitlines()[0]


def _flush_folder(folder: Path) -> None:
    """Has a rename on the disk too, where the system can do that to a folder."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
