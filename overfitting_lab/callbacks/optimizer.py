"""The settings of optimizer and schedule when training starts from a checkpoint, which holds earlier settings."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_modules.errors import ModelError
from lightning_modules.schedules import optimizer_and_schedule
from lightning_modules.weight_decay import UNDECAYED

Settings = dict[str, Any]


class OptimizerSettings(Callback):
    """Train with the configured settings of the optimizer, although Lightning restores the checkpoint's settings.

    Changes that do not fit the restored state are refused: another optimizer, other groups of parameters
    (``decay_biases``), another schedule, and another learning rate under a schedule, which computes its rates from the
    earlier one.
    """

    def __init__(self) -> None:
        self._today: dict[str, Settings] = {}
        self._changed: Settings = {}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Compare the settings.

        Raises:
            ModelError: if the checkpoint's state does not fit the configured settings.
        """
        before, today = checkpoint.get("settings"), settings(pl_module)
        if before is None or not trainer.training:  # a checkpoint of an earlier version
            return
        before["optimizer"].setdefault("decay_biases", True)  # a checkpoint of an earlier version has one group
        optimizer, schedule = (_differing(before[thing], today[thing]) for thing in ("optimizer", "schedule"))
        groups = {name: values for name, values in optimizer.items() if name in ("class", "decay_biases")}
        for thing, refused in (("optimizer", groups), ("schedule", schedule)):
            for name, (was, now) in refused.items():
                raise ModelError(
                    f"the state in the checkpoint is of another {thing}: its {name} is {was} there and {now} here; "
                    "begin a new run: python scripts/fit.py --config RUN/config.yaml with the flags that differ"
                )
        self._changed = {name: now for name, (_, now) in optimizer.items() if now is not None}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._today = settings(pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replace the restored settings by the configured ones."""
        for place, group in enumerate(trainer.optimizers[0].param_groups):
            group.update(self._changed | (UNDECAYED if place and not pl_module.decay_biases else {}))

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["settings"] = self._today


def settings(pl_module: LightningModule) -> dict[str, Settings]:
    """Return the plain settings of the configured optimizer and schedule, and the names of their classes."""
    optimizer, schedule = optimizer_and_schedule(pl_module)
    scheduler = schedule.get("scheduler")
    groups = {"decay_biases": pl_module.decay_biases}
    found = {"optimizer": _plain(optimizer, optimizer.defaults) | groups, "schedule": {}}
    if scheduler is not None:
        found["schedule"] = _plain(scheduler, scheduler.state_dict()) | {"interval": schedule.get("interval")}
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
