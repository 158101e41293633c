"""The predicted length of a run, compared with what Lightning does."""

from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, TensorDataset

from datamodules import CIFAR10DataModule
from lightning_modules.schedules import in_run
from overfitting_lab.callbacks.run_length import run_length, validations

BATCHES = 5


class Counter(LightningModule):
    """A network that counts its validations and the steps of its schedule."""

    def __init__(self, interval: str, frequency: int) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.schedule = {"interval": interval, "frequency": frequency}
        self.validations = 0

    def training_step(self, batch: list[Tensor]) -> Tensor:
        return self.layer(batch[0]).sum()  # type: ignore[no-any-return]

    def validation_step(self, batch: list[Tensor]) -> None:
        self.validations += 1

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=1e-3)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": LambdaLR(optimizer, lambda _: 1), **self.schedule},
        }


@pytest.mark.parametrize(
    ("settings", "schedule"),
    [
        ({"max_epochs": 3}, ("step", 1)),
        ({"max_epochs": 3}, ("step", 2)),
        ({"max_epochs": 3, "accumulate_grad_batches": 2}, ("step", 1)),
        ({"max_epochs": 3, "accumulate_grad_batches": 2}, ("step", 2)),
        ({"max_epochs": 3, "accumulate_grad_batches": 2}, ("step", 3)),
        ({"max_epochs": 3, "accumulate_grad_batches": 2}, ("step", 5)),
        ({"max_epochs": 5}, ("epoch", 2)),
        ({"max_steps": 3}, ("step", 2)),
        ({"max_steps": 7, "check_val_every_n_epoch": 2}, ("step", 1)),
        ({"max_steps": 8, "val_check_interval": 2}, ("step", 1)),
        ({"max_steps": 8, "val_check_interval": 0.5, "check_val_every_n_epoch": 2}, ("step", 3)),
        ({"max_steps": 8, "val_check_interval": 3, "check_val_every_n_epoch": None}, ("step", 1)),
        ({"max_steps": 7, "accumulate_grad_batches": 2}, ("step", 2)),
        ({"max_epochs": 2, "max_steps": 100}, ("step", 1)),
        ({"max_epochs": 3, "scheduling": {0: 5, 1: 1}}, ("step", 1)),
        ({"max_epochs": 3, "scheduling": {1: 5}}, ("step", 1)),
        ({"max_steps": 20, "scheduling": {0: 5, 2: 1}}, ("step", 1)),
        ({"max_steps": 6, "scheduling": {0: 1, 1: 5}, "check_val_every_n_epoch": 2}, ("step", 1)),
    ],
)
def test_it_is_what_lightning_does(settings: dict[str, Any], schedule: tuple[str, int]) -> None:
    settings = dict(settings)
    scheduling = settings.pop("scheduling", None)
    callbacks = [GradientAccumulationScheduler(scheduling)] if scheduling else []
    quiet: dict[str, Any] = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    trainer = Trainer(accelerator="cpu", devices=1, callbacks=[*callbacks], num_sanity_val_steps=0, **quiet, **settings)
    data = CIFAR10DataModule(batch_size=4)
    data.train_indices = torch.arange(4 * BATCHES - 1)
    length = run_length(trainer, data)
    expected = (length.total, length.epochs, validations(trainer, length))
    steps = in_run(dict(zip(("interval", "frequency"), schedule, strict=True)), length)

    images = TensorDataset(torch.ones(BATCHES, 1))
    network = Counter(*schedule)
    trainer.fit(network, DataLoader(images), DataLoader(images, batch_size=BATCHES))
    begun = trainer.fit_loop.epoch_progress.current.ready
    assert expected == (trainer.global_step, begun, network.validations)
    assert steps == trainer.lr_scheduler_configs[0].scheduler.last_epoch
