"""The reason why training ended."""

import sys

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping, Timer

from overfitting_lab.callbacks.plateau import PlateauSchedule
from overfitting_lab.callbacks.progress import ends_epoch
from overfitting_lab.runs.text import duration


class ObservedTrainer(Trainer):
    """A Trainer that remembers which object asked training to stop. Lightning does not.

    Any callback may set ``trainer.should_stop = True``. Lightning's EarlyStopping and Timer do so and leave no other
    trace. So the setter reads the frame of the method that calls it.

    Attributes:
        stopped_by: the ``self`` of that method, or the reason as a checkpoint states it. ``None`` if a function set it.
    """

    stopped_by: object = None
    _should_stop = False

    @property
    def should_stop(self) -> bool:
        return self._should_stop

    @should_stop.setter
    def should_stop(self, stop: bool) -> None:
        if stop and (not self._should_stop or isinstance(self.stopped_by, str)):  # the first one since a resume decides
            self.stopped_by = sys._getframe(1).f_locals.get("self")
        self._should_stop = bool(stop)


def reason(trainer: Trainer) -> str:
    """Return why training ended without an error, with the flag that decided it."""
    if trainer.limit_train_batches == 0:
        return "an epoch has no batches (--trainer.limit_train_batches)"
    if 0 <= trainer.max_steps <= trainer.global_step:
        return f"all {trainer.max_steps} steps are done (--trainer.max_steps)"
    epochs = trainer.max_epochs or -1
    if ends_epoch(trainer) and trainer.current_epoch == epochs:
        return f"all {epochs} epochs are done (--trainer.max_epochs)"
    return reason_to_stop(trainer)


def reason_to_stop(trainer: Trainer) -> str:
    """Return a text that names the callback that asked training to stop, and its reason."""
    by = getattr(trainer, "stopped_by", None)
    if isinstance(by, str):
        return by
    if isinstance(by, Timer):
        elapsed = duration(by.time_elapsed() + (by.time_remaining() or 0))
        return f"the time of {elapsed} is up (--trainer.max_time, or the duration of Timer)"
    if isinstance(by, EarlyStopping):
        words = (by.stopping_reason_message or "").removesuffix(" Signaling Trainer to stop.")
        return f"EarlyStopping after epoch {by.stopped_epoch + 1}: {words} (--trainer.callbacks)"
    if isinstance(by, PlateauSchedule):
        return f"PlateauSchedule: no improvement after {by.reductions} reductions of the rate (--trainer.callbacks)"
    name = "a callback" if by is None else type(by).__name__
    return f"{name} stopped it (--trainer.callbacks)"


def untested(trainer: Trainer) -> str:
    """Return why a run whose training has just ended has no test result yet."""
    no_batches = trainer.limit_test_batches == 0
    return "--trainer.limit_test_batches is 0" if no_batches else "the test did not come to its end"
