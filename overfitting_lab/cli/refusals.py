"""Settings that would do nothing, or harm, beside others: each function returns why it refuses them, or ``None``."""

import inspect
from collections.abc import Collection, Sequence

from jsonargparse import Namespace
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import GradientAccumulationScheduler

from lightning_modules import ImageClassifier

# Methods that Lightning calls of the data module, although a network may have them as well.
OF_DATA = (
    "train_dataloader", "val_dataloader", "test_dataloader", "on_before_batch_transfer", "transfer_batch_to_device",
    "on_after_batch_transfer",
)  # fmt: skip
# Methods without which nothing is measured or logged.
MEASURING = (
    "on_validation_epoch_start", "validation_step", "on_validation_epoch_end", "on_test_epoch_start", "test_step",
    "on_test_epoch_end",
)  # fmt: skip


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
    if not _replaces(model, "configure_optimizers"):
        return None
    given = [name for name in ("optimizer", "lr_scheduler") if isinstance(settings.get(name), Namespace)]
    given += ["decay_biases"] * (settings.get("decay_biases") is False)  # the default of the others is a function
    if not given:
        return None
    return (
        f"--model.{given[0]} would do nothing: {type(model).__name__} has its own configure_optimizers; "
        "leave the setting out, or let the method begin with super().configure_optimizers()"
    )


def lost_method(model: ImageClassifier) -> str | None:
    """Refuse methods of the network's class that would not be called, or that would keep others from measuring."""
    name = type(model).__name__
    for method in OF_DATA:
        if getattr(type(model), method) is not getattr(ImageClassifier, method):
            return (
                f"{name}.{method} would not be called: batches come from the data module. Change a batch's images in "
                "training_step: super().training_step(batch._replace(images=...), batch_idx)"
            )
    for method in MEASURING:
        if _replaces(model, method):
            result = f"end with return super().{method}(...)" if method.endswith("step") else f"call super().{method}()"
            return f"{name}.{method} replaces the one that measures accuracy and loss: let it {result}"
    return None


def lost_schedule(model: ImageClassifier, settings: Namespace) -> str | None:
    """Refuse a schedule that a network with manual optimization would not step."""
    if model.automatic_optimization or not isinstance(settings.get("lr_scheduler"), Namespace):
        return None
    return (
        f"--model.lr_scheduler would do nothing: {type(model).__name__} optimizes manually, and then Lightning steps "
        "no schedule; leave the setting out, and step a schedule in training_step"
    )


def _replaces(model: ImageClassifier, name: str) -> bool:
    """Tell if the network's class has an own method that does not call the one of ``ImageClassifier``."""
    own = inspect.unwrap(getattr(type(model), name))
    code = getattr(own, "__code__", None)  # None: a callable of another kind, which may call it
    return own is not getattr(ImageClassifier, name) and code is not None and not {"super", name} & {*code.co_names}


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
