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
        self._today: dict[str, Any] = {}
        self._changed: list[Settings] = []  # of each group of parameters

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Compare the settings.

        Raises:
            ModelError: if the checkpoint's state does not fit the configured settings.
        """
        before, today = checkpoint.get("settings"), settings(pl_module)
        if before is None or not trainer.training:  # a checkpoint of an earlier version
            return
        before["optimizer"].setdefault("decay_biases", True)  # a checkpoint of an earlier version has one group
        undecayed = {} if before["optimizer"]["decay_biases"] else UNDECAYED
        before.setdefault(  # a checkpoint of an earlier version
            "groups",
            [before["optimizer"] | (undecayed if place else {}) for place in range(len(today["groups"]))],
        )
        optimizer, schedule = (_differing(before[thing], today[thing]) for thing in ("optimizer", "schedule"))
        groups = {name: values for name, values in optimizer.items() if name in ("class", "decay_biases")}
        for thing, refused in (("optimizer", groups), ("schedule", schedule)):
            for name, (was, now) in refused.items():
                raise ModelError(
                    f"the state in the checkpoint is of another {thing}: its {name} is {was} there and {now} here; "
                    "begin a new run: python scripts/fit.py --config RUN/config.yaml with the flags that differ"
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
        self._today = settings(pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replace the restored settings by the configured ones."""
        for group, changed in zip(trainer.optimizers[0].param_groups, self._changed, strict=False):
            group.update(changed)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["settings"] = self._today


def settings(pl_module: LightningModule) -> dict[str, Any]:
    """Return the plain settings of optimizer, groups of parameters and schedule, and the names of their classes."""
    optimizer, schedule = optimizer_and_schedule(pl_module)
    scheduler = schedule.get("scheduler")
    groups = {"decay_biases": pl_module.decay_biases}
    found: dict[str, Any] = {"optimizer": _plain(optimizer, optimizer.defaults) | groups, "schedule": {}}
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
