"""The arguments of torch's learning-rate schedules that a run decides: they may be left out."""

import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

from lightning.pytorch import LightningModule
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR, PolynomialLR

from lightning_modules.errors import ModelError

LENGTHS = {CosineAnnealingLR: "T_max", OneCycleLR: "total_steps", PolynomialLR: "total_iters"}
# Arguments that torch requires, or gives a default that ends long before the run, with the types that they have here.
OPTIONAL: dict[Any, dict[str, Any]] = {
    CosineAnnealingLR: {"T_max": int | None},
    OneCycleLR: {"max_lr": float | list[float] | None},
    PolynomialLR: {"total_iters": int | None},
}


class Length(NamedTuple):
    """Length of a run without an early stop."""

    batches: int  # of an epoch
    steps: int  # of an epoch
    total: int  # steps of all epochs; 0 if nothing limits them
    epochs: int  # that are begun; 0 if nothing limits them


def optimizer_and_schedule(model: LightningModule) -> tuple[Optimizer, dict[str, Any]]:
    """Return a network's optimizer and its schedule's configuration, in whichever form the network gives them.

    The configuration is that of Lightning's ``lr_scheduler``: ``scheduler``, and maybe ``interval`` and others. It is
    empty without a schedule.

    Raises:
        ModelError: if these are not one optimizer and at most one schedule.
    """
    made: Any = model.configure_optimizers()
    schedules: Any = []
    if isinstance(made, list | tuple):
        optimizers, schedules = made if made and isinstance(made[0], list | tuple) else (made, [])
        made = optimizers[0] if len(optimizers) == 1 and len(schedules) <= 1 else None
    if isinstance(made, Optimizer):
        made = {"optimizer": made, "lr_scheduler": next(iter(schedules), None)}
    if not isinstance(made, dict) or "optimizer" not in made:
        raise ModelError(
            f"configure_optimizers of {type(model).__name__} must return one optimizer and at most one schedule"
        )
    schedule = made.get("lr_scheduler") or {}
    return made["optimizer"], schedule if isinstance(schedule, dict) else {"scheduler": schedule}


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
