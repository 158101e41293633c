"""The time that a run will take, as a range: before it begins, and from its first steps on."""

import time
from itertools import pairwise
from typing import Any, NamedTuple

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Timer
from torch import Tensor

from datamodules import CIFAR10DataModule
from lightning_modules.schedules import Length
from overfitting_lab.callbacks.progress import ends_step
from overfitting_lab.callbacks.run_length import limited, run_length, steps_left, validations
from overfitting_lab.runs.text import TimeRange

WORTH_SAYING = 60  # seconds: of a shorter run nothing is said
MEASURED = 5  # seconds of steps that are measured, in at least so many steps:
STEPS = 3
GROUPS = 5  # of steps; the fastest and the slowest group give the range
# An image's evaluation against its training, which also computes the gradients: a forward pass of three passes.
EVALUATION = (1 / 4, 1 / 2)


class Evaluations(NamedTuple):
    """Numbers of images that a whole run evaluates."""

    validation: int  # of one validation
    validations: int  # all of them
    probe: int  # in the whole run
    test: int


def evaluations(trainer: Trainer, data: CIFAR10DataModule, length: Length) -> Evaluations:
    """Count the images that a run on data that is set up evaluates."""

    def images(indices: Tensor, limit: float) -> int:
        batches = limited(-(-len(indices) // data.batch_size), limit)
        return min(len(indices), batches * data.batch_size)

    validation = images(data.val_indices, trainer.limit_val_batches)
    probe = images(data.probe_indices, trainer.limit_val_batches) * probes(trainer, data, length)
    test = images(data.test_indices, trainer.limit_test_batches)
    return Evaluations(validation, validation * validations(trainer, length), probe, test)


def probes(trainer: Trainer, data: CIFAR10DataModule, length: Length) -> int:
    """Return the number of evaluations of the probe in a run."""
    if not data.probe_every:
        return 0
    every, evaluated = trainer.check_val_every_n_epoch or 1, [-1]
    for epoch in range(every - 1, length.epochs, every):
        if epoch + 1 == length.epochs or data.probe_falls_due(epoch, evaluated[-1]):
            evaluated.append(epoch)
    return len(evaluated) - 1


class TimeLeft(Callback):
    """Print how long the rest of a run will take, in the first epoch, after some seconds or half of the epoch's steps.

    Nothing is printed of a run of less than a minute, or of one without an end. A callback may end the run earlier.
    """

    def __init__(self) -> None:
        self._ends: list[float] = []  # of the steps in a row, by time.monotonic()
        self._waits = False  # until the line is printed, or the first epoch has ended

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._waits = trainer.is_global_zero

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave a validation between two steps out."""
        self._ends.clear()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not (self._waits and ends_step(trainer)):
            return
        self._ends.append(time.monotonic())
        measured = len(self._ends) - 1
        enough = measured >= STEPS and self._ends[-1] - self._ends[0] >= MEASURED
        late = measured and 2 * (batch_idx + 1) >= trainer.num_training_batches
        if enough or late:
            self._waits = False
            step = _per_step(self._ends)
            left = _left(trainer, step, (batch_idx + 1) // trainer.accumulate_grad_batches)
            if left is not None and left.high >= WORTH_SAYING:
                how = f"{measured} step{'s' * (measured > 1)} took {step.low:.3g} to {step.high:.3g} s each"
                print(f"left       {left}: {how}; validation and test are estimated", flush=True)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._waits = False


def _per_step(ends: list[float]) -> TimeRange:
    """Return the time of a step in the fastest and in the slowest of some groups of steps."""
    steps = len(ends) - 1
    edges = [steps * group // min(steps, GROUPS) for group in range(min(steps, GROUPS) + 1)]
    seconds = [(ends[last] - ends[first]) / (last - first) for first, last in pairwise(edges)]
    return TimeRange(min(seconds), max(seconds))


def _left(trainer: Trainer, step: TimeRange, done: int) -> TimeRange | None:
    """Return the time until the end of the test, after ``done`` steps of the running epoch.

    It is ``None`` if training has no end of its own.
    """
    data: CIFAR10DataModule = trainer.datamodule  # type: ignore[attr-defined]
    length = run_length(trainer, data)
    steps = steps_left(trainer, length, trainer.current_epoch, done)
    if steps is None:
        return None
    images, share = evaluations(trainer, data, length), steps / length.total
    image = step.times(length.steps / (length.batches * data.batch_size))
    image = TimeRange(image.low * EVALUATION[0], image.high * EVALUATION[1])
    training = step.times(steps) + image.times(share * (images.validations + images.probe))
    for timer in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(timer, Timer) and (most := timer.time_remaining()) is not None:
            training = TimeRange(*(min(seconds, max(0.0, most)) for seconds in training))
    return training + image.times(images.test)
