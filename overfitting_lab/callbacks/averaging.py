"""Averages of weights: a run keeps the network that it validates."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging

from lightning_modules.errors import ModelError


class AverageBeforeUpdate(Callback):
    """Let the network of Lightning's ``WeightAveraging`` equal the trained network until its first update.

    Otherwise the untrained network would be validated and kept until then (Lightning issue #21724). This callback must
    stand before the ``WeightAveraging``.
    """

    def __init__(self, averaging: WeightAveraging) -> None:
        self._averaging = averaging

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Silence a warning about a test, which needs no state of the average."""
        warnings.filterwarnings("ignore", message="You're using the WeightAveraging callback, but loading a checkpoint")

    def _copy(self, trainer: Trainer, pl_module: LightningModule) -> None:
        average: dict[str, Any] = {"state_dict": {}}
        self._averaging.on_save_checkpoint(trainer, pl_module, average)
        if average.get("averaging_state", {}).get("n_averaged") == 0:
            trained = pl_module.state_dict()
            average |= {"state_dict": trained, "current_model_state": trained}
            self._averaging.on_load_checkpoint(trainer, pl_module, average)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Copy the network before it is swapped for the average."""
        if trainer.state.fn == "fit":
            self._copy(trainer, pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn == "fit":
            self._copy(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Copy the network before the average replaces it."""
        self._copy(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replace the network by its average, even if nothing was left to train."""
        self._averaging.on_train_end(trainer, pl_module)


@contextmanager
def validated_network(trainer: Trainer, pl_module: LightningModule) -> Iterator[None]:
    """Give the module the weights that the last validation measured: the average, if there is one."""
    averages = [callback for callback in trainer.callbacks if isinstance(callback, WeightAveraging)]  # type: ignore[attr-defined]
    for average in averages:
        average.on_validation_epoch_start(trainer, pl_module)
    yield
    for average in averages:
        average.on_validation_epoch_end(trainer, pl_module)


class AverageRequired(Callback):
    """Refuse to train on from averaged weights without the callback that averages them.

    Such a checkpoint has the average in ``state_dict``. The weights to train on from are in ``current_model_state``.
    """

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Compare the checkpoint with the callbacks.

        Raises:
            ModelError: if the average would become the weights that are trained.
        """
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        averages = any(isinstance(callback, WeightAveraging) for callback in callbacks)
        if trainer.training and "current_model_state" in checkpoint and not averages:
            raise ModelError(
                "the checkpoint holds averaged weights; resume it with the callback that averages them, or begin a new "
                "run"
            )
