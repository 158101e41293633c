"""Each training step: its random numbers can be repeated, and a loss that is NaN or infinite ends the run."""

import hashlib
import random
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from overfitting_lab.callbacks.epochs import DivergedError, recorder_of
from overfitting_lab.callbacks.progress import ends_epoch

CHECK_EVERY = 20  # steps between two checks of the loss, at which several processes also agree


class SeededSteps(Callback):
    """Seed all generators for each batch from seed, epoch, batch and process, so that no state has to be saved.

    Dropout draws from torch's. A user's own network or callback may draw from those of Python and NumPy.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        place = f"{self._seed} {trainer.current_epoch} {batch_idx} {trainer.global_rank}"
        seed = int.from_bytes(hashlib.sha256(place.encode()).digest()[:4], "big")
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would ask for every kind of device
        if (device := trainer.strategy.root_device).type != "cpu":
            torch.get_device_module(device).manual_seed(seed)


class Losses:
    """The losses since the last check, each with the number and the learning rate of its optimizer step."""

    def __init__(self) -> None:
        self._losses: list[Tensor] = []
        self._steps: list[tuple[int, float]] = []

    def __len__(self) -> int:
        return len(self._losses)

    def begin(self, trainer: Trainer) -> None:
        """Remember the step of the batch that begins."""
        self._steps.append((trainer.global_step + 1, recorder_of(trainer).learning_rate))

    def add(self, loss: Tensor) -> None:
        """Remember the loss of the batch, without waiting for its value."""
        self._losses.append(loss.detach())

    def first_bad(self) -> int:
        """Return the place, from 1, of the first loss that is not finite; 0 if all are finite."""
        finite = torch.stack(self._losses).isfinite().tolist() if self._losses else []
        return finite.index(False) + 1 if False in finite else 0

    def discard(self, bad: int) -> None:
        """Discard the losses, after the places of all processes were compared: ``bad`` is the highest.

        Raises:
            DivergedError: if there is a bad one.
        """
        if bad:
            step, rate = self._steps[bad - 1]
            raise DivergedError(f"the loss is NaN or infinite at step {step} (learning rate {rate:g})")
        self._losses.clear()
        self._steps.clear()


class FiniteLoss(Callback):
    """End a run without checkpoints at a loss that is not finite. With checkpoints, :class:`Recovery` does it."""

    def __init__(self) -> None:
        self._losses = Losses()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._losses.begin(trainer)

    def on_train_batch_end(self, trainer: Trainer, _: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Check the loss every 20 batches, and at an epoch's end."""
        self._losses.add(outputs["loss"])
        if ends_epoch(trainer) or len(self._losses) >= CHECK_EVERY:
            bad = torch.tensor(self._losses.first_bad(), device=trainer.strategy.root_device)
            if trainer.world_size > 1:
                torch.distributed.all_reduce(bad, torch.distributed.ReduceOp.MAX)
            self._losses.discard(int(bad))
