"""Settings that would do nothing, or harm, beside others: each function returns why it refuses them, or ``None``."""

from collections.abc import Collection, Sequence

from jsonargparse import Namespace
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import GradientAccumulationScheduler

from lightning_modules import ImageClassifier


def lost_gradients(mode: str, accumulated: int, callbacks: Sequence[Callback]) -> str | None:
    """Refuse CUDA graphs, which two modes of ``torch.compile`` record on a GPU, beside accumulation.

    A graph writes the gradients of each batch where those of the batch before lie (pytorch/pytorch#96693, #169545).
    """
    accumulates = accumulated > 1 or any(isinstance(each, GradientAccumulationScheduler) for each in callbacks)
    if mode == "default" or not accumulates:
        return None
    return f"--compile {mode} loses gradients if several batches are accumulated: give --compile default"


def lost_optimizer(model: ImageClassifier, settings: Namespace) -> str | None:
    """Refuse settings of the optimizer that the network's own ``configure_optimizers`` would not use."""
    own = type(model).configure_optimizers
    if own is ImageClassifier.configure_optimizers or {"super", "configure_optimizers"} & {*own.__code__.co_names}:
        return None
    given = [name for name in ("optimizer", "lr_scheduler") if isinstance(settings.get(name), Namespace)]
    given += ["decay_biases"] * (settings.get("decay_biases") is False)  # the default of the others is a function
    if not given:
        return None
    return (
        f"--model.{given[0]} would do nothing: {type(model).__name__} has its own configure_optimizers; "
        "leave the setting out, or let the method begin with super().configure_optimizers()"
    )


def lost_schedule(model: ImageClassifier, settings: Namespace) -> str | None:
    """Refuse a schedule that a network with manual optimization would not step."""
    if model.automatic_optimization or not isinstance(settings.get("lr_scheduler"), Namespace):
        return None
    return (
        f"--model.lr_scheduler would do nothing: {type(model).__name__} optimizes manually, and then Lightning steps "
        "no schedule; leave the setting out, and step a schedule in training_step"
    )


def lost_interval(settings: Namespace, typed: Collection[str]) -> str | None:
    """Refuse an interval among the ``typed`` settings that no schedule has."""
    name = "lr_scheduler_interval"
    if f"model.{name}" not in typed or settings.get(name) != "step":
        return None
    schedule = settings.get("lr_scheduler")
    if not isinstance(schedule, Namespace):
        return f"--model.{name} does nothing without a schedule: leave it out, or give --model.lr_scheduler"
    if schedule.class_path.endswith("ReduceLROnPlateau"):
        return f"--model.{name} does nothing beside ReduceLROnPlateau, which steps after each epoch: leave it out"
    return None


def lost_rate(settings: Namespace, typed: Collection[str]) -> str | None:
    """Refuse a learning rate among the ``typed`` settings that the schedule would replace."""
    schedule = settings.get("lr_scheduler")
    sets_rate = isinstance(schedule, Namespace) and schedule.get("init_args", {}).get("max_lr") is not None
    if not sets_rate or "model.optimizer.lr" not in typed:
        return None
    return (
        f"--model.optimizer.lr does nothing beside {schedule.class_path.rpartition('.')[2]}, whose max_lr sets "
        "the rate: give --model.lr_scheduler.max_lr instead"
    )
