"""The length of a run in batches, steps, epochs and validations. It depends on the data and on the Trainer's limits."""

import math
from itertools import pairwise

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler

from datamodules import CIFAR10DataModule
from lightning_modules.schedules import Length


def run_length(trainer: Trainer, data: CIFAR10DataModule) -> Length:
    """Return the length of a run on data that is set up."""
    batches = limited(-(-len(data.train_indices) // data.batch_size), trainer.limit_train_batches)
    first, *later = _accumulations(trainer)
    limits = (trainer.max_epochs or 0, trainer.max_steps)
    most_epochs, most_steps = (limit if limit > 0 else math.inf for limit in limits)  # -1: no limit
    total = epochs = rest = 0
    for (begin, accumulated), (end, _) in pairwise([first, *later, (most_epochs, 0)]):
        steps = -(-batches // accumulated)
        left = min(min(end, most_epochs) - begin, (most_steps - total) / max(1, steps))
        if math.isinf(left):  # nothing limits the run
            total = epochs = 0
        elif left > 0:
            total, epochs = total + steps * math.ceil(left), epochs + math.ceil(left)
            if total > most_steps:  # they end within the last epoch
                total, rest = trainer.max_steps, (steps - (total - trainer.max_steps)) * accumulated
    return Length(batches, -(-batches // first[1]), total, epochs if batches else 0, first[1], rest)


def _accumulations(trainer: Trainer) -> list[tuple[int, int]]:
    """Return the epochs from which on a step accumulates another number of batches, with these numbers."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, GradientAccumulationScheduler):
            return sorted(callback.scheduling.items())
    return [(0, trainer.accumulate_grad_batches)]


def steps_left(trainer: Trainer, length: Length, epochs: int, steps: int = 0) -> int | None:
    """Return how many steps a run has left after ``epochs`` epochs and ``steps`` steps; ``None`` if it has no end.

    The epochs before a resume may have had other batches, and so another number of steps.
    """
    left = []
    if trainer.max_epochs is not None and trainer.max_epochs > 0:
        left.append(length.steps * (trainer.max_epochs - epochs) - steps)
    if trainer.max_steps > 0:
        left.append(trainer.max_steps - trainer.global_step)
    return max(0, min(left)) if left else None


def validations(trainer: Trainer, length: Length) -> int:
    """Return the number of validations of a run; 1 an epoch if a clock decides it."""
    if not trainer.limit_val_batches or not length.steps:
        return 0
    interval = getattr(trainer, "val_check_interval", 1.0)  # a duration has none
    every = trainer.check_val_every_n_epoch
    if every is None:
        all_batches = length.whole * length.batches + length.rest
        return all_batches // interval if isinstance(interval, int) else length.epochs
    batches = interval if isinstance(interval, int) else max(1, int(length.batches * interval))
    in_rest = 0 if (length.whole + 1) % every else length.rest // batches
    return length.whole // every * (length.batches // batches) + in_rest


def limited(batches: int, limit: float) -> int:
    """Return the number of batches that the Trainer's limit, a number or a fraction, leaves."""
    return min(batches, limit) if isinstance(limit, int) else int(batches * limit)
