"""Averages of weights: a run keeps the network that it validates."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, update_bn

from lightning_modules.errors import ModelError
from overfitting_lab.callbacks.epochs import recorder_of
from overfitting_lab.callbacks.progress import ends_epoch


class MeanOfLastEpochs(WeightAveraging):
    """Average the weights at the ends of the last epochs: stochastic weight averaging (Izmailov et al. 2018, sec. 3.2).

    Every epoch that ends after the fraction ``start`` of the run counts equally. The epoch's end is averaged before the
    epoch's validation. Lightning's ``WeightAveraging`` would average it after the validation, so that the last epoch
    would enter no network that is validated. The same happens here if ``val_check_interval`` does not divide the epoch.

    The statistics of batch normalization are not averaged, because the statistics of the mean network differ from the
    mean of the networks' statistics. They are measured anew with the mean network, in a pass over the epoch's training
    images, whose batches count equally. Every process makes the whole pass, so that all have the same statistics.

    Args:
        start: share of the run, in [0, 1), after which the average begins. The paper uses 0.75.

    Raises:
        ValueError: if ``start`` is not in [0, 1).
    """

    def __init__(self, start: float = 0.75) -> None:
        if not 0 <= start < 1:
            raise ValueError(f"start must be in [0, 1), not {start}")
        super().__init__(use_buffers=False)
        self.start = start

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a run of unknown length, before the run has its folder."""
        if stage == "fit" and max(trainer.max_epochs or -1, trainer.max_steps) < 0:
            raise MisconfigurationException(
                "MeanOfLastEpochs averages the last part of a run: give its length by --trainer.max_epochs or "
                "--trainer.max_steps"
            )
        super().setup(trainer, pl_module, stage)

    def _is_late(self, trainer: Trainer, epochs: int) -> bool:
        """Tell if the average has begun after ``epochs`` epochs and the steps so far."""
        done = ((epochs, trainer.max_epochs or -1), (trainer.global_step, trainer.max_steps))
        return any(part > self.start * whole for part, whole in done if whole > 0)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Discard the average of a run that is resumed to train longer, if its new last part has not begun."""
        if not self._is_late(trainer, trainer.current_epoch):
            self.averaged.n_averaged.zero_()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Add the network to the average at the end of a late epoch, and measure the statistics of the average."""
        if not (ends_epoch(trainer) and self._is_late(trainer, trainer.current_epoch + 1)):
            return
        super().on_train_batch_end(trainer, pl_module, *args)
        devices = [pl_module.device] if pl_module.device.type == "cuda" else []
        with torch.random.fork_rng(devices), trainer.precision_plugin.forward_context():
            update_bn(_training_images(trainer), self.averaged.module)

    @property
    def averaged(self) -> AveragedModel:
        """The average, from the start of training on."""
        assert self._average_model is not None
        return self._average_model


def _training_images(trainer: Trainer) -> Iterator[Tensor]:
    """Yield the epoch's training images of all processes as the network gets them, batch by batch."""
    loader = trainer.datamodule.train_dataloader()  # type: ignore[attr-defined]
    for batch in islice(replace(loader, rank=0, world_size=1), int(trainer.num_training_batches)):
        yield trainer.strategy.batch_to_device(batch).images


class ValidatedAverage(Callback):
    """Let the network of Lightning's ``WeightAveraging`` equal the trained network until its first update.

    Otherwise the untrained network would be validated and kept until then (Lightning issue #21724). Print which network
    is validated and which is kept. This callback must stand before the ``WeightAveraging``.
    """

    def __init__(self, averaging: WeightAveraging) -> None:
        self._averaging = averaging
        self._said: bool | None = None  # if the last printed line said that the average had begun
        self._keeps_average = False  # if the best validation measured the average

    @property
    def _average(self) -> AveragedModel:
        assert self._averaging._average_model is not None
        return self._averaging._average_model

    def is_tested(self, trainer: Trainer) -> bool:
        """Tell if the network that is tested after training, a checkpoint's or the last one, is the average."""
        return self._keeps_average if trainer.ckpt_path else bool(self._average.n_averaged)

    def state_dict(self) -> dict[str, Any]:
        return {"keeps_average": self._keeps_average}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._keeps_average = state_dict["keeps_average"]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Silence a warning about a test, which needs no state of the average."""
        warnings.filterwarnings("ignore", message="You're using the WeightAveraging callback, but loading a checkpoint")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Move the average to the network's device. Lightning copies the network while it is still on the CPU."""
        if self._averaging._device is None:
            self._average.to(pl_module.device)

    def _copy(self, pl_module: LightningModule) -> bool:
        """Copy the trained network if the average has not begun; return True if it has."""
        begun = bool(self._average.n_averaged)
        if not begun:
            self._average.module.load_state_dict(pl_module.state_dict())
        return begun

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Copy the network before it is swapped for the average."""
        if trainer.state.fn == "fit":
            begun = self._copy(pl_module)
            if trainer.is_global_zero and begun is not self._said and not trainer.sanity_checking:
                epoch = trainer.current_epoch + 1
                resumed = self._said is None and trainer.ckpt_path is not None
                since = "validated" if resumed else f"validated from epoch {epoch} on"
                ahead = since if begun else "not begun: the trained network is validated"
                print(f"average    {ahead}", flush=True)
                self._said = begun

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note if the best validation measured the average."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking and recorder_of(trainer).is_best:
            self._keeps_average = bool(self._average.n_averaged)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn == "fit":
            self._copy(pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Copy the network before the average replaces it."""
        self._copy(pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replace the network by its average, even if nothing was left to train. Print which network is kept."""
        self._averaging.on_train_end(trainer, pl_module)
        best = recorder_of(trainer).best
        number = int(self._average.n_averaged)
        if trainer.is_global_zero and best is not None and number:
            kept = "the average" if self._keeps_average else "the trained network, before the average began"
            networks = f"{number} network{'s' * (number > 1)}"
            print(f"average    of {networks}; the best validation, of epoch {best.epoch + 1}, is of {kept}")


def average_is_tested(trainer: Trainer) -> bool:
    """Tell if the network that is tested after training is an average of weights."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return any(each.is_tested(trainer) for each in callbacks if isinstance(each, ValidatedAverage))


@contextmanager
def validated_network(trainer: Trainer, pl_module: LightningModule) -> Iterator[None]:
    """Give the module the weights that the last validation measured: the average, if there is one."""
    averages = [callback for callback in trainer.callbacks if isinstance(callback, WeightAveraging)]  # type: ignore[attr-defined]
    for average in averages:
        average.on_validation_epoch_start(trainer, pl_module)
    try:
        yield
    finally:
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
