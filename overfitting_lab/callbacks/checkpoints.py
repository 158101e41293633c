"""Checkpoints that survive a crash, and the checkpoint of the best epoch."""

import errno
import io
import os
import pickle
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from overfitting_lab.callbacks.averaging import validated_network
from overfitting_lab.callbacks.epochs import recorder_of
from overfitting_lab.callbacks.logger import RunLogger
from overfitting_lab.runs.files import link_or_copy, replace_file
from overfitting_lab.runs.notes import attempt

PLAIN = "keep numbers, texts, lists, dicts and tensors alone in a state"


class CheckpointError(Exception):
    """A checkpoint cannot be written. The message names the file and the remedy."""


class StateError(Exception):
    """A checkpoint holds what no resume would load."""


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
            with attempt("resuming"):
                _check_loadable(new, checkpoint)

        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            replace_file(target, save)
        except (torch.OutOfMemoryError, torch.AcceleratorError):  # of the GPU, whose tensors are copied
            raise
        except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
            full = getattr(error, "errno", errno.ENOSPC) in (errno.ENOSPC, errno.EDQUOT)
            raise CheckpointError(
                f"cannot write {target}: {_reason(error)}; what was there before is untouched. "
                f"Make {'room' if full else 'the folder writable'}, then resume with --resume"
            ) from error


class BestCheckpoint(Checkpoint):
    """Keep the weights of the best validation, which :class:`EpochRecorder` chooses, as ``best.ckpt``.

    ``best.ckpt`` may be newer than ``last.ckpt``, which is saved less often. Until ``last.ckpt`` is saved again, the
    best weights that it knows of are kept as ``best_before.ckpt``: a run that resumes from it with other settings
    never reaches the newer weights.
    """

    def __init__(self, logger: RunLogger) -> None:
        self._logger = logger
        self._known: Path | None = None  # until best.ckpt is it: the best weights that the loaded state knows of

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the best weights that the state of training knows of; without them, discard their validation."""
        if trainer.ckpt_path is None:
            return
        recorder, files = recorder_of(trainer), self._logger.files
        if recorder.best is not None and trainer.is_global_zero:
            folders = files.checkpoints, Path(trainer.ckpt_path).parent
            places = [folder / file.name for folder in folders for file in (files.best, files.best_before)]
            self._known = next((path for path in places if _step_of(path) == recorder.best.step), None)
        if not trainer.strategy.broadcast(self._known is not None):
            recorder.best = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Let ``best.ckpt`` be what the state of training knows of. A run that fails before has changed nothing."""
        known = self._known
        if known is not None:  # in process 0 alone
            files = self._logger.files
            if known != files.best:
                replace_file(files.best, lambda path: link_or_copy(known, path))
            files.best_before.unlink(missing_ok=True)
            self._known = None

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Discard weights that no validation of this run chose."""
        if trainer.is_global_zero and recorder_of(trainer).best is None:
            self._logger.files.best.unlink(missing_ok=True)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the weights if the validation is the best."""
        if trainer.sanity_checking or not recorder_of(trainer).is_best:
            return
        files = self._logger.files
        if trainer.is_global_zero and files.best.is_file() and not files.best_before.exists():
            replace_file(files.best_before, lambda path: link_or_copy(files.best, path))
        with validated_network(trainer, pl_module):
            trainer.save_checkpoint(files.best, weights_only=True)


def check_states(callbacks: Sequence[Callback], pl_module: LightningModule) -> None:
    """Check that a resume could load the states of callbacks, and what the network adds to a checkpoint.

    Raises:
        CheckpointError: if it could not load one. The message names whose it is.
    """
    added: dict[str, Any] = {"state_dict": pl_module.state_dict()}
    with suppress(KeyError):  # it needs more of a checkpoint than there is before the first step
        pl_module.on_save_checkpoint(added)
    del added["state_dict"]
    states = [(callback, "state_dict()", callback.state_dict()) for callback in callbacks]
    for owner, method, state in (*states, (pl_module, "on_save_checkpoint", added)):
        if state and (held := _unloadable(state)):
            name = type(owner).__name__
            raise CheckpointError(f"no run with {name} could be resumed: its {method} holds {held}; {PLAIN}")


def _check_loadable(path: Path, checkpoint: Mapping[str, Any]) -> None:
    """Check that a checkpoint loads without running code from it, as a resume loads it.

    Raises:
        StateError: if it does not. The message names the part that prevents it.
    """
    try:
        torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        parts = {**checkpoint, **checkpoint.get("callbacks", {})}
        whole = {"callbacks", "state_dict", "optimizer_states"}
        names = [name for name, part in parts.items() if name not in whole and _unloadable(part)]
        raise StateError(
            f"the checkpoint cannot be loaded again: {', '.join(names) or 'its state'} holds {_object(error)}; {PLAIN}"
        ) from error


def _unloadable(part: object) -> str:
    """Return what a resume would not load; empty if it would load all."""
    file = io.BytesIO()
    torch.save(part, file)
    file.seek(0)
    try:
        torch.load(file, weights_only=True)
    except pickle.UnpicklingError as error:
        return _object(error)
    return ""


def _object(error: pickle.UnpicklingError) -> str:
    kind = re.search(r"GLOBAL ([\w.]+)", str(error))
    return kind[1] if kind else "an object"


def _step_of(checkpoint: Path) -> int | None:
    """Return the optimizer step of a checkpoint; ``None`` if there is none that can be read."""
    with suppress(Exception):  # torch raises errors of many classes
        return int(torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)["global_step"])
    return None


def _reason(error: OSError | RuntimeError) -> str:
    """Return the operating system's reason, which torch may have wrapped."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    return str(error).splitlines()[0]
