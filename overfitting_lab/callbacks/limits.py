"""Limits, intervals and schedules that do not fit the length of a run. Only the data can judge them."""

import warnings

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim.lr_scheduler import ReduceLROnPlateau

import overfitting_lab.doctor.schedule as schedule_rules
from datamodules import CIFAR10DataModule
from lightning_modules import ImageClassifier
from lightning_modules.schedules import Length, TrainerNeededError, in_run, optimizer_and_schedule
from overfitting_lab.callbacks.run_length import limited, run_length, validations
from overfitting_lab.runs.notes import in_words

NO_VALIDATION = "to turn validation off, give --trainer.limit_val_batches 0"


class LimitError(Exception):
    """A limit or an interval of the Trainer does not fit the data. The message names the flag and the remedy."""


class LimitCheck(Callback):
    """Refuse limits and intervals that do not fit the data, before the run claims its folder."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            data = trainer.datamodule  # type: ignore[attr-defined]
            check_limits(trainer, data)
            fit_schedule(trainer, pl_module, data)  # type: ignore[arg-type]


def check_limits(trainer: Trainer, data: CIFAR10DataModule) -> None:
    """Check the limits and intervals.

    Raises:
        LimitError: if one of them leaves no batches, or is longer than the epoch or the run.
    """
    if trainer.fast_dev_run:  # type: ignore[attr-defined]  # has limits of its own
        return
    found = []
    loaders = {"train": data.train_dataloader(), "val": data.val_dataloader()[0], "test": data.test_dataloader()}
    for split, loader in loaders.items():
        limit = getattr(trainer, f"limit_{split}_batches")
        if limit and not limited(len(loader), limit):
            least = f"give a number of batches, or a fraction of at least {1 / len(loader):.2g}"
            found.append(f"--trainer.limit_{split}_batches {limit}: leaves none of {len(loader)} batches; {least}")
    length = run_length(trainer, data)
    if length.batches:
        found += _intervals(trainer, length)
    if found:
        raise LimitError("\n".join(found))


def fit_schedule(trainer: Trainer, model: ImageClassifier, data: CIFAR10DataModule) -> None:
    """Give the learning-rate schedule the length of a run on data that is set up, and check that it lasts so long.

    Raises:
        LimitError: if the schedule would stop the run with an error.
    """
    model.run_length = length = run_length(trainer, data)
    try:
        _, schedule = optimizer_and_schedule(model)
    except TrainerNeededError:  # before the run: it can be judged when the run begins
        return
    if not schedule:
        return
    scheduler, interval, there = schedule["scheduler"], schedule.get("interval", "epoch"), in_run(schedule, length)
    name = f"--model.lr_scheduler {type(scheduler).__name__}"
    if (most := schedule_rules.capacity(scheduler)) is not None and there > most:
        raise LimitError(
            f"{name}: has {most:,} {interval}s, but the run has {there:,}, and torch stops a run with an error there; "
            "a new run computes the number if --model.lr_scheduler.total_steps is left out"
        )
    if not isinstance(scheduler, ReduceLROnPlateau):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch wants a step of the optimizer before
                scheduler.step()
                scheduler.state_dict()
        except Exception as error:  # of torch, or of a user's own class
            raise LimitError(f"{name}: it cannot be stepped and saved ({in_words(error)})") from error


def _intervals(trainer: Trainer, length: Length) -> list[str]:
    found = []
    if trainer.accumulate_grad_batches > length.batches:
        at_most = f"an epoch has {length.batches} batches; give at most {length.batches}"
        found.append(f"--trainer.accumulate_grad_batches {trainer.accumulate_grad_batches}: {at_most}")
    if trainer.min_steps and 0 < length.total < trainer.min_steps:
        longer = f"the run ends after {length.total} steps; give a higher --trainer.max_epochs"
        found.append(f"--trainer.min_steps {trainer.min_steps}: {longer}")
    if not trainer.limit_val_batches:
        return found
    interval = getattr(trainer, "val_check_interval", None)  # a duration has none
    every = trainer.check_val_every_n_epoch
    if isinstance(interval, int):
        there = length.batches if every is not None else length.whole * length.batches + length.rest
        if 0 < there < interval:
            what = "an epoch" if every is not None else "the run"
            remedy = f"{what} has {there} batches, so it is never validated; give at most {there}"
            if every is not None:
                remedy += ", or --trainer.check_val_every_n_epoch null to count them across epochs"
            if interval >= 60**3 and not interval % 60:
                remedy += "; a duration needs two digits of days, as in 01:00:00:00"
            found.append(f"--trainer.val_check_interval {interval}: {remedy}; {NO_VALIDATION}")
    if every is not None and every > 1 and length.total and not found and not validations(trainer, length):
        remedy = f"the run has {length.whole} whole epochs, so it is never validated; {NO_VALIDATION}"
        found.append(f"--trainer.check_val_every_n_epoch {every}: {remedy}")
    return found
