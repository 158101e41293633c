"""The state of training: saved often enough, restored exactly, and stopped by signals at a whole step."""

import contextlib
import os
import shutil
import signal
import time
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import torch
from filelock import BaseFileLock, FileLock, Timeout
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping, Timer, WeightAveraging

from overfitting_lab.callbacks.checkpoints import CheckpointError, check_states
from overfitting_lab.callbacks.ending import ObservedTrainer, reason_to_stop
from overfitting_lab.callbacks.logger import RunLogger
from overfitting_lab.callbacks.progress import ends_epoch, ends_step, stops, validation_is_scheduled
from overfitting_lab.callbacks.steps import CHECK_EVERY, Losses
from overfitting_lab.runs.files import link_or_copy, replace_file, resume_command
from overfitting_lab.runs.text import space

STOP_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1") if hasattr(signal, name)]
Keep = Literal["all", "weights"]
PAUSE = 20  # an epoch's end saves again only after this many times the duration of the last save


class StoppedError(Exception):
    """A signal stopped the run, whose state is saved."""

    def __init__(self, number: int, folder: Path) -> None:
        self.status = 128 + number  # exit status for the process
        name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        super().__init__(f"stopped by {name}; resume with: {resume_command(folder)}")


class Recovery(Checkpoint):
    """Save the state of training, obey signals, and stop at a loss that is not finite.

    ``last.ckpt`` is written at the end of an epoch, and within an epoch every so many minutes or steps. Short epochs
    are skipped, except the first and the last, so that saving takes at most a twentieth of the time. The checkpoint
    before it is kept as ``previous.ckpt`` until training has come to its end. If the run ``keeps`` ``weights`` alone,
    ``last.ckpt`` is removed after the test, unless there is no ``best.ckpt``.

    SIGTERM, Ctrl-C, SIGHUP and SIGUSR1 let the step end, save and stop. With ``nohup``, SIGHUP does nothing. A
    second Ctrl-C stops at once. On an epoch's last step the epoch ends first, because a state saved there would
    skip the validation. A validation that is scheduled within an epoch also comes first, because a state saved
    before it would lose it.

    If training stops within an epoch, for any reason, the state is saved at that step and not at the end of the cut
    epoch. So a resumed run trains the rest of the epoch. A stop that is asked for between two steps waits for the end
    of the next step. If a callback stopped a run, the resumed run stays stopped, unless ``may_continue``. The clock
    (``Timer``) decides anew.

    ``minutes`` or ``steps``, optimizer steps, pass between two checkpoints within an epoch; ``None`` leaves it to
    ``minutes``.

    Lightning calls the hooks of a batch in this order, and each decides what the next may do:

    1. ``on_train_batch_end`` withdraws a stop within a step. At a step's end it asks again for a withdrawn stop, and
       lets all processes agree on what to do. At an epoch's end it leaves saving to ``on_train_epoch_end``, before a
       scheduled validation to ``on_validation_end``. Otherwise it saves.
    2. ``on_validation_end`` saves if ``on_train_batch_end`` left it to this hook, or if another callback asks for a
       stop in the validation.
    3. ``on_train_epoch_end`` saves the end of an epoch, unless training stopped within it.
    """

    def __init__(
        self,
        logger: RunLogger,
        minutes: float,
        steps: int | None,
        *,
        keeps: Keep = "all",
        may_continue: bool = False,
    ) -> None:
        self._logger = logger
        self._seconds = 60 * minutes
        self._steps = steps
        self._keeps = keeps
        self._may_continue = may_continue
        # The last save:
        self._saved_at = self._save_seconds = 0.0  # when, by time.monotonic(), and how long it took
        self._saved_step = 0
        # Stops: a signal stops at the end of a step; if a validation is due then, after it.
        self._signal = 0  # that arrived last; 0 if none did
        self._after_validation = 0, False  # the signal that stops after the validation, and if to save
        self._held_stops: list[object] = []  # objects that asked training to stop before a step's end
        self._losses = Losses()
        # From the start of training: the handlers until it ends, the lock until the test has ended.
        self._handlers: dict[int, Any] = {}  # of the signals, from before
        self._lock: BaseFileLock | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Lock the folder, before any other callback writes to it."""
        if stage != "fit" or not trainer.is_global_zero:
            return
        lock = FileLock(self._logger.files.lock, timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise CheckpointError(f"another process trains {self._logger.folder}; wait for its end") from None
        self._lock = lock

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that the disk has room for the checkpoints, and that a resume could load them."""
        if not trainer.is_global_zero:
            return
        check_states(trainer.callbacks, pl_module)  # type: ignore[attr-defined]
        folder = self._logger.files.checkpoints
        folder.mkdir(parents=True, exist_ok=True)
        needed = checkpoint_bytes(trainer, pl_module)
        there = sum(path.stat().st_size for path in folder.glob("*.ckpt"))
        free = shutil.disk_usage(folder).free
        if free + there < needed:
            raise CheckpointError(
                f"{folder} has {space(free)} left, and checkpoints of this network need up to {space(needed - there)}; "
                "make room, or keep runs elsewhere: --trainer.default_root_dir FOLDER"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Handle the signals."""
        self._saved_at = time.monotonic()
        self._saved_step = trainer.global_step
        for number in STOP_SIGNALS:
            ignored = signal.getsignal(number) is signal.SIG_IGN  # nohup ignores SIGHUP, a script's & ignores SIGINT
            if not ignored or number == signal.SIGINT:
                self._handlers[number] = signal.signal(number, self._on_signal)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Discard the checkpoint before the last one, which only a run that is still training may need.

        Raises:
            StoppedError: if a signal came after the last step.
        """
        if trainer.is_global_zero:
            self._logger.files.previous.unlink(missing_ok=True)
        stop, _ = self._agree(trainer, due=False)
        if stop:
            raise StoppedError(stop, self._logger.folder)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Discard the state of training if the run keeps weights alone."""
        files = self._logger.files
        if trainer.is_global_zero and self._keeps == "weights" and files.best.is_file():
            files.last.unlink(missing_ok=True)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Release the signals and the folder; Lightning does not call ``teardown`` if it fails."""
        self.teardown(trainer, pl_module, "fit")
        self.release_folder()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Release the signals."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers.clear()

    def release_folder(self) -> None:
        """Let other processes write to the folder. The test, which follows training, still writes to it."""
        if self._lock is not None:
            if os.name == "posix":  # elsewhere an open file cannot be removed, and the lock removes it itself
                with contextlib.suppress(OSError):  # the folder is gone
                    self._logger.files.lock.unlink(missing_ok=True)
            self._lock.release()
            self._lock = None

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._signal == number == signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self._signal = number

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._hold_stop(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._losses.begin(trainer)

    def on_train_batch_end(self, trainer: Trainer, _: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Check the loss every 20 steps; save if it is time, or if a signal arrived."""
        self._losses.add(outputs["loss"])
        if not ends_step(trainer):
            self._hold_stop(trainer)
            return
        self._release_stop(trainer)
        alone = trainer.world_size == 1 and (self._signal or self._is_due(trainer))
        wanted = alone or self._is_due_by_steps(trainer)  # which is the same in each process
        if not (wanted or stops(trainer) or ends_epoch(trainer) or len(self._losses) >= CHECK_EVERY):
            return
        stop, due = self._agree(trainer, due=self._is_due(trainer))
        wanted = bool(stop or due or stops(trainer))
        if ends_epoch(trainer):
            return
        if validation_is_scheduled(trainer):
            self._after_validation = stop, wanted
        else:
            self._save_within_epoch(trainer, stop, wanted)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save within the epoch if it was due before the validation, or if a callback stops training after it."""
        if trainer.sanity_checking or ends_epoch(trainer):
            return
        if not ends_step(trainer):
            self._hold_stop(trainer)
            return
        (stop, wanted), self._after_validation = self._after_validation, (0, False)
        unsaved = trainer.global_step != self._saved_step
        self._save_within_epoch(trainer, stop, wanted or (stops(trainer) and unsaved))

    def _save_within_epoch(self, trainer: Trainer, stop: int, wanted: bool) -> None:
        if wanted:
            self._save(trainer)
        if stop:
            raise StoppedError(stop, self._logger.folder)

    def _hold_stop(self, trainer: Trainer) -> None:
        """Withdraw a stop that would end training between two optimizer steps, until the next step is done."""
        if trainer.should_stop:
            self._held_stops.append(getattr(trainer, "stopped_by", None))
            trainer.should_stop = False

    def _release_stop(self, trainer: Trainer) -> None:
        if self._held_stops:
            _stop(trainer, self._held_stops[0])
            self._held_stops.clear()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the epoch's end if it is time, unless training stops within the epoch."""
        paused = time.monotonic() - self._saved_at >= PAUSE * self._save_seconds
        stop, due = self._agree(trainer, due=paused or self._is_due(trainer))
        last = trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs
        if ends_epoch(trainer) and (stop or due or last or trainer.global_step == trainer.max_steps):
            self._save(trainer)
        if stop:
            raise StoppedError(stop, self._logger.folder)

    def _is_due(self, trainer: Trainer) -> bool:
        return self._is_due_by_steps(trainer) or time.monotonic() - self._saved_at >= self._seconds

    def _is_due_by_steps(self, trainer: Trainer) -> bool:
        return self._steps is not None and trainer.global_step - self._saved_step >= self._steps

    def _agree(self, trainer: Trainer, *, due: bool) -> tuple[int, bool]:
        """Return what any process knows: the signal that asks to stop, or 0; and if a checkpoint is due."""
        known = torch.tensor([self._signal, due, self._losses.first_bad()], device=trainer.strategy.root_device)
        if trainer.world_size > 1:
            torch.distributed.all_reduce(known, torch.distributed.ReduceOp.MAX)
        stop, anyone_due, bad = known.tolist()
        self._losses.discard(bad)
        return stop, bool(anyone_due)

    def _save(self, trainer: Trainer) -> None:
        files = self._logger.files
        if trainer.is_global_zero and files.last.exists():
            replace_file(files.previous, lambda new: link_or_copy(files.last, new))
        self._logger.flush()
        started = time.monotonic()
        trainer.save_checkpoint(files.last)
        if trainer.is_global_zero:
            files.best_before.unlink(missing_ok=True)
        self._saved_at = time.monotonic()
        self._save_seconds = self._saved_at - started
        self._saved_step = trainer.global_step

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add why a callback stopped training."""
        by_clock = isinstance(getattr(trainer, "stopped_by", None), Timer)
        checkpoint["stopped"] = reason_to_stop(trainer) if trainer.should_stop and not by_clock else ""

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Stop if a callback had stopped training. EarlyStopping keeps its configured patience."""
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, EarlyStopping) and (state := checkpoint["callbacks"].get(callback.state_key)):
                state["patience"] = callback.patience
        if (stopped := checkpoint.get("stopped")) and not self._may_continue:
            _stop(trainer, stopped if isinstance(stopped, str) else None)


def _stop(trainer: Trainer, by: object) -> None:
    """Ask training to stop on behalf of another object, or with a checkpoint's words for the reason."""
    trainer.should_stop = True
    if isinstance(trainer, ObservedTrainer):
        trainer.stopped_by = by


def checkpoint_bytes(trainer: Trainer, pl_module: LightningModule) -> int:
    """Return the bytes that a run's checkpoints take up at most."""
    network = sum(parameter.numel() * parameter.element_size() for parameter in pl_module.parameters())
    averages = any(isinstance(callback, WeightAveraging) for callback in trainer.callbacks)  # type: ignore[attr-defined]
    # Last, previous and the one being written, each with Adam's two numbers per weight and the average; best, the best
    # before and the one being written; weights.pth.
    return (3 * (3 + averages) + 3 + 1) * network
