"""The settings of optimizer and schedule when training starts from a checkpoint, which holds earlier settings."""

from collections.abc import Iterator
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_modules.errors import ModelError
from lightning_modules.schedules import optimizer_and_schedule
from lightning_modules.weight_decay import UNDECAYED
from overfitting_lab.callbacks.progress import is_of_epochs_end

Settings = dict[str, Any]


class OptimizerSettings(Callback):
    """Train with the configured settings of the optimizer, although Lightning restores the checkpoint's settings.

    Changes that do not fit the restored state are refused: another optimizer, other groups of parameters
    (``decay_biases``), an option of the optimizer that needs more state, another schedule, another learning rate under
    a schedule, which computes its rates from the earlier one, and another accumulation of batches within an epoch.
    """

    def __init__(self) -> None:
        self._today: dict[str, Any] = {}
        self._changed: list[Settings] = []  # of each group of parameters

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Compare the settings.

        Raises:
            ModelError: if the checkpoint's state does not fit the configured settings.
        """
        before, today = checkpoint.get("settings"), _settings(trainer, pl_module)
        if before is None or not trainer.training:  # a checkpoint of an earlier version
            return
        before["optimizer"].setdefault("decay_biases", True)  # a checkpoint of an earlier version has one group
        undecayed = {} if before["optimizer"]["decay_biases"] else UNDECAYED
        before.setdefault(  # a checkpoint of an earlier version
            "groups",
            [before["optimizer"] | (undecayed if place else {}) for place in range(len(today["groups"]))],
        )
        for thing, name, was, now in _unfit(before, today):
            raise ModelError(
                f"the state in the checkpoint is of another {thing}: its {name} is {was} there and {now} here; "
                "begin a new run: python scripts/fit.py --config RUN/config.yaml with the flags that differ"
            )
        accumulated, wanted = before.get("accumulated"), today["accumulated"]
        if accumulated not in (None, wanted) and not is_of_epochs_end(checkpoint):
            raise ModelError(
                f"the checkpoint is within an epoch whose steps accumulate {accumulated} batches, and "
                f"trainer.accumulate_grad_batches is {wanted}: resume with --trainer.accumulate_grad_batches "
                f"{accumulated}, or change it at the end of an epoch"
            )
        there, now = before["groups"], today["groups"]
        if len(there) != len(now):
            raise ModelError(
                f"the state in the checkpoint is of {len(there)} groups of parameters, the optimizer has {len(now)}; "
                "begin a new run: python scripts/fit.py --config RUN/config.yaml with the flags that differ"
            )
        self._changed = [
            {name: value for name, value in group.items() if value is not None and earlier.get(name) != value}
            for earlier, group in zip(there, now, strict=True)
        ]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._today = _settings(trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replace the restored settings by the configured ones."""
        for group, changed in zip(trainer.optimizers[0].param_groups, self._changed, strict=False):
            group.update(changed)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["settings"] = self._today


def _unfit(before: Settings, today: Settings) -> Iterator[tuple[str, str, Any, Any]]:
    """Yield the settings that the checkpoint's state does not fit: whose, their names, and values there and here."""
    optimizer, schedule = (_differing(before[thing], today[thing]) for thing in ("optimizer", "schedule"))
    options = {"amsgrad", "centered"}  # they add to the state
    if before["optimizer"]["class"] == "RMSprop":  # SGD adds its momentum at any step
        options.add("momentum")
    for name, (was, now) in optimizer.items():
        if name in ("class", "decay_biases") or (name in options and now and not was):
            yield "optimizer", name, was, now
    if today["schedule"] and "lr" in optimizer:
        schedule["lr"] = optimizer["lr"]
    for name, (was, now) in schedule.items():
        yield "schedule", name, was, now


def _settings(trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
    """Return the plain settings of optimizer, groups of parameters and schedule, and the names of their classes.

    ``accumulated`` is the configured number of batches of a step, whatever a callback does with it later.
    """
    optimizer, schedule = optimizer_and_schedule(pl_module)
    scheduler = schedule.get("scheduler")
    groups = {"decay_biases": pl_module.decay_biases}
    found: dict[str, Any] = {"optimizer": _plain(optimizer, optimizer.defaults) | groups, "schedule": {}}
    found["accumulated"] = trainer.accumulate_grad_batches
    found["groups"] = [
        {name: value for name, value in group.items() if name in optimizer.defaults and _is_plain(value)}
        | ({"lr": group["initial_lr"]} if _is_plain(group.get("initial_lr")) and "initial_lr" in group else {})
        for group in optimizer.param_groups
    ]
    if scheduler is not None:
        found["schedule"] = _plain(scheduler, scheduler.state_dict()) | {"interval": schedule.get("interval")}
        if schedule.get("frequency", 1) != 1:
            found["schedule"]["frequency"] = schedule["frequency"]
    return found


def _differing(before: Settings, today: Settings) -> dict[str, tuple[Any, Any]]:
    """Return the settings that differ, each with its value in the checkpoint and its configured value."""
    pairs = {name: (before.get(name), today.get(name)) for name in [*today, *before]}
    return {name: (was, now) for name, (was, now) in pairs.items() if was != now}


def _plain(thing: object, values: dict[str, Any]) -> Settings:
    plain = {name: value for name, value in values.items() if not name.startswith("_") and _is_plain(value)}
    return {"class": type(thing).__name__, **plain}


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)
