"""The length of a run in batches, steps, epochs and validations. It depends on the data and on the Trainer's limits."""

from lightning.pytorch import Trainer

from datamodules import CIFAR10DataModule
from lightning_modules.schedules import Length


def run_length(trainer: Trainer, data: CIFAR10DataModule) -> Length:
    """Return the length of a run on data that is set up."""
    batches = limited(-(-len(data.train_indices) // data.batch_size), trainer.limit_train_batches)
    steps = -(-batches // trainer.accumulate_grad_batches)
    ends = (steps * (trainer.max_epochs or 0), trainer.max_steps)
    total = min((end for end in ends if end > 0), default=0)  # -1: no limit
    return Length(batches, steps, total, -(-total // steps) if steps else 0)


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
    if not trainer.limit_val_batches:
        return 0
    interval = getattr(trainer, "val_check_interval", 1.0)  # a duration has none
    every = trainer.check_val_every_n_epoch
    if every is None:
        return length.epochs * length.batches // interval if isinstance(interval, int) else length.epochs
    batches = interval if isinstance(interval, int) else max(1, int(length.batches * interval))
    return length.epochs // every * (length.batches // batches)


def limited(batches: int, limit: float) -> int:
    """Return the number of batches that the Trainer's limit, a number or a fraction, leaves."""
    return min(batches, limit) if isinstance(limit, int) else int(batches * limit)
