"""The end of a plateau schedule."""

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.cli import ReduceLROnPlateau


class StopAfterPlateaus(EarlyStopping):
    """Ends training when the learning rate has been reduced once more than it may be.

    With ``lightning.pytorch.cli.ReduceLROnPlateau(factor=0.1)`` and 3 reductions this is the rule of Simonyan &
    Zisserman (2014, sec. 3.1): divide by 10 when validation accuracy stops improving, three times in all, then stop.

    It is an ``EarlyStopping`` because Lightning calls those at the end of an epoch after the module, which steps the
    schedule there; it has no patience of its own.

    Args:
        reductions: how often the rate may be reduced.

    Raises:
        ValueError: if ``reductions`` is negative.
    """

    def __init__(self, reductions: int = 3) -> None:
        if reductions < 0:
            raise ValueError(f"reductions must be at least 0, not {reductions}")
        super().__init__(monitor="the learning rate")
        self.reductions = reductions

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Looks whether there is a plateau schedule to watch: here, before the run has its folder."""
        if stage != "fit":
            return
        configured = pl_module.configure_optimizers()
        schedule = configured.get("lr_scheduler") if isinstance(configured, dict) else None
        if not (isinstance(schedule, dict) and isinstance(schedule["scheduler"], ReduceLROnPlateau)):
            raise MisconfigurationException(
                "StopAfterPlateaus needs lightning.pytorch.cli.ReduceLROnPlateau as model.lr_scheduler"
            )

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing here: the schedule steps at the end of the epoch."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stops where the rate stands below the last one allowed."""
        (scheduler,) = (config.scheduler for config in trainer.lr_scheduler_configs)
        assert isinstance(scheduler, ReduceLROnPlateau)
        optimizer = trainer.optimizers[0]
        last = optimizer.defaults["lr"] * scheduler.factor**self.reductions
        if optimizer.param_groups[0]["lr"] < 0.999 * last:
            trainer.should_stop = True
