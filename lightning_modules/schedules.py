"""The arguments of torch's learning-rate schedules that a run decides: they may be left out."""

import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

from lightning.pytorch import LightningModule
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR, PolynomialLR, ReduceLROnPlateau

from lightning_modules.errors import ModelError

LENGTHS = {CosineAnnealingLR: "T_max", OneCycleLR: "total_steps", PolynomialLR: "total_iters"}
# Arguments that torch requires, or gives a default that ends long before the run, with the types that they have here.
OPTIONAL: dict[Any, dict[str, Any]] = {
    CosineAnnealingLR: {"T_max": int | None},
    OneCycleLR: {"max_lr": float | list[float] | None},
    PolynomialLR: {"total_iters": int | None},
}


KEYS = ("scheduler", "interval", "frequency", "monitor", "strict", "name", "reduce_on_plateau")  # of Lightning


class TrainerNeededError(ModelError):
    """A network's own ``configure_optimizers`` asks for the Trainer before it has one."""


class Length(NamedTuple):
    """Length of a run without an early stop."""

    batches: int  # of an epoch
    steps: int  # of an epoch; of the first one if a GradientAccumulationScheduler changes their number
    total: int  # steps of all epochs; 0 if nothing limits them
    epochs: int  # that are begun; 0 if nothing limits them
    accumulated: int = 1  # batches of a step, likewise
    rest: int = 0  # batches of the last epoch if max_steps cuts it

    @property
    def whole(self) -> int:
        """Number of epochs that are not cut."""
        return self.epochs - (self.rest > 0)


def optimizer_and_schedule(model: LightningModule) -> tuple[Optimizer, dict[str, Any]]:
    """Return a network's optimizer and its schedule's configuration, in whichever form the network gives them.

    The configuration is that of Lightning's ``lr_scheduler``: ``scheduler``, and maybe ``interval`` and others. It is
    empty without a schedule.

    Raises:
        TrainerNeededError: if the network asks for its Trainer, and has none yet.
        ModelError: if these are not one optimizer and at most one schedule, or if the configuration is wrong.
    """
    name = type(model).__name__
    try:
        made: Any = model.configure_optimizers()
    except RuntimeError as error:
        if "is not attached to a `Trainer`" not in str(error):
            raise
        raise TrainerNeededError(f"configure_optimizers of {name} needs the Trainer of a run that trains") from error
    schedules: Any = []
    if isinstance(made, list | tuple):
        optimizers, schedules = made if made and isinstance(made[0], list | tuple) else (made, [])
        made = optimizers[0] if len(optimizers) == 1 and len(schedules) <= 1 else None
    if isinstance(made, Optimizer):
        made = {"optimizer": made} | ({"lr_scheduler": schedules[0]} if schedules else {})
    if not isinstance(made, dict) or not isinstance(made.get("optimizer"), Optimizer):
        raise ModelError(f"configure_optimizers of {name} must return one optimizer and at most one schedule")
    if "lr_scheduler" not in made:
        return made["optimizer"], {}
    schedule = made["lr_scheduler"]
    schedule = dict(schedule) if isinstance(schedule, dict) else {"scheduler": schedule}
    if isinstance(schedule.get("scheduler"), ReduceLROnPlateau):
        schedule = {"monitor": made.get("monitor")} | schedule
    if fault := _fault(schedule):
        raise ModelError(f"configure_optimizers of {name}: lr_scheduler {fault}")
    return made["optimizer"], schedule


def _fault(schedule: Mapping[str, Any]) -> str:
    """Return what is wrong with a schedule's configuration; an empty text if nothing is."""
    scheduler, interval, frequency = (
        schedule.get(key, usual) for key, usual in (("scheduler", None), ("interval", "epoch"), ("frequency", 1))
    )
    if unknown := schedule.keys() - KEYS:
        return f"has {', '.join(sorted(unknown))}, which is no key of it; its keys are {', '.join(KEYS)}"
    if not (hasattr(scheduler, "step") and hasattr(scheduler, "optimizer")):
        return f"must have a schedule, not {scheduler!r}; without one, leave lr_scheduler out"
    if interval not in ("epoch", "step"):
        return f"has the interval {interval!r}; give epoch or step"
    if not isinstance(frequency, int) or frequency < 1:
        return f"has the frequency {frequency!r}; give a whole number of at least 1"
    if isinstance(scheduler, ReduceLROnPlateau):
        if not isinstance(schedule["monitor"], str):
            return "of ReduceLROnPlateau needs a monitor, as in {'scheduler': ..., 'monitor': 'val_loss'}"
        if (interval, frequency) != ("epoch", 1):
            return "of ReduceLROnPlateau steps after each epoch here: leave interval and frequency out"
    return ""


def in_run(schedule: Mapping[str, Any], length: Length) -> int:
    """Return how often a run steps a schedule, by its configuration; 0 if nothing limits the run.

    Lightning counts the ``frequency`` of a schedule by step in batches, anew in each epoch. It skips the schedule if it
    is due at a batch that completes no step.
    """
    frequency = int(schedule.get("frequency", 1))
    if schedule.get("interval", "epoch") == "epoch":
        return length.epochs // frequency
    if frequency == 1:
        return length.total

    def within(batches: int) -> int:
        due = range(frequency, batches + 1, frequency)
        return sum(batch % length.accumulated == 0 or batch == length.batches for batch in due)

    return length.whole * within(length.batches) + within(length.rest)


def class_and_arguments(factory: Any) -> tuple[Any, Mapping[str, Any]]:
    """Return the class that a factory builds and the arguments that the factory holds, if it is a ``partial``."""
    parts = (getattr(factory, "func", factory), *getattr(factory, "args", ()))  # jsonargparse's: (make, class)
    return next(filter(inspect.isclass, parts), None), getattr(factory, "keywords", {})


def lacks_length(kind: Any, given: Mapping[str, Any]) -> bool:
    """Tell if the length of a schedule is left out. ``epochs`` and ``steps_per_epoch`` together give it as well."""
    name = LENGTHS.get(kind)
    both = given.get("epochs") is not None and given.get("steps_per_epoch") is not None
    return name is not None and given.get(name) is None and not both


def left_out(
    kind: Any, given: Mapping[str, Any], length: Length, interval: str, optimizer: Optimizer
) -> dict[str, Any]:
    """Return values for the arguments of a schedule that are left out.

    The length is the run's: steps or epochs, by ``interval``. The highest rate of a ``OneCycleLR`` is the optimizer's.

    Raises:
        ModelError: if the run's length is needed, but nothing limits it.
    """
    values: dict[str, Any] = {}
    if kind is OneCycleLR and given.get("max_lr") is None:
        values["max_lr"] = optimizer.defaults["lr"]
    if not lacks_length(kind, given):
        return values
    name = LENGTHS[kind]
    if not length.total:
        raise ModelError(
            f"{kind.__name__} needs the length of the run: give --trainer.max_epochs, --trainer.max_steps or "
            f"--model.lr_scheduler.{name}"
        )
    steps_per_epoch = length.steps if interval == "step" else 1
    if given.get("epochs") is not None:
        return values | {"steps_per_epoch": steps_per_epoch}
    if given.get("steps_per_epoch") is not None:
        return values | {"epochs": length.epochs}
    return values | {name: length.total if interval == "step" else length.epochs}
