"""Rules about the learning-rate schedule: it ends with the run."""

from collections.abc import Iterator

from torch.optim import lr_scheduler as schedules

from overfitting_lab.doctor.diagnosis import Diagnosis, Severity


def length(scheduler: object) -> int | None:
    """Return the number of its own steps that a schedule needs to complete; ``None`` if it has no end."""
    match scheduler:
        case schedules.OneCycleLR():
            return int(scheduler.total_steps) - 1
        case schedules.MultiStepLR():
            return max(scheduler.milestones, default=0) + 1
        case schedules.StepLR():
            return int(scheduler.step_size) + 1
        case schedules.CosineAnnealingLR():
            return int(scheduler.T_max)
        case schedules.CosineAnnealingWarmRestarts():
            return int(scheduler.T_0)
        case schedules.LinearLR() | schedules.ConstantLR() | schedules.PolynomialLR():
            return int(scheduler.total_iters)
        case schedules.SequentialLR():
            last = length(scheduler._schedulers[-1])
            return int(scheduler._milestones[-1]) + (1 if last is None else last)
        case _:
            return None


def capacity(scheduler: object) -> int | None:
    """Return the number of its own steps after which torch refuses to step a schedule; ``None`` if it never does."""
    match scheduler:
        case schedules.OneCycleLR():
            return int(scheduler.total_steps)
        case schedules.ChainedScheduler():
            return min(filter(None, map(capacity, scheduler._schedulers)), default=None)
        case schedules.SequentialLR():
            starts = [0, *map(int, scheduler._milestones)]
            ends = [*starts[1:], None]
            refusals = [
                start + most
                for start, end, each in zip(starts, ends, scheduler._schedulers, strict=True)
                if (most := capacity(each)) is not None and (end is None or start + most < end)
            ]
            return min(refusals, default=None)
        case _:
            return None


def schedule_cut_short(scheduler: object, interval: str, epochs: int, total: int) -> Iterator[Diagnosis]:
    """Report a schedule whose last change comes after the end of a run of ``epochs`` and ``total`` optimizer steps.

    The run steps the ``scheduler``, of ``torch.optim.lr_scheduler``, at each ``interval``: ``epoch`` or ``step``.
    """
    needed, steps = length(scheduler), epochs if interval == "epoch" else total
    if needed is None or needed <= steps:
        return
    name = type(scheduler).__name__
    shorter = f"a {name} of at most {steps:,} {interval}s"
    remedy = f"--trainer.max_epochs {needed}, or {shorter}" if interval == "epoch" else shorter
    by_step = isinstance(scheduler, schedules.OneCycleLR) or (needed > 10 * epochs and needed >= total / 2)
    if interval == "epoch" and by_step and needed <= total:  # its length was counted in optimizer steps
        remedy = "--model.lr_scheduler_interval step"
    yield Diagnosis(
        "schedule_cut_short",
        Severity.WARNING,
        "the learning-rate schedule does not complete",
        f"{name} needs {needed:,} {interval}s, the run has {steps:,}",
        remedy,
    )
