from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import ReduceLROnPlateau
from torch.optim.lr_scheduler import StepLR

from datamodules import CIFAR10DataModule
from lightning_modules import ImageClassifier
from lightning_modules.errors import ModelError
from overfitting_lab.callbacks.epochs import EpochRecorder
from overfitting_lab.callbacks.plateau import PlateauSchedule
from overfitting_lab.runs.epochs import METRICS
from tests.networks import linear_classifier, quiet_trainer

NEVER_BETTER = partial(ReduceLROnPlateau, monitor="val_loss", factor=0.1, threshold=1e9)


@pytest.fixture
def data(image_folder: Path) -> CIFAR10DataModule:
    return CIFAR10DataModule(str(image_folder), "folder", train_size=10, val_size=10, batch_size=10)


def classifier(lr_scheduler: Any) -> ImageClassifier:
    return linear_classifier(0.5, lr_scheduler)


def trainer_of(*callbacks: Callback, max_epochs: int = 20, **settings: Any) -> Trainer:
    return quiet_trainer(EpochRecorder(), *callbacks, max_epochs=max_epochs, **settings)


def rate(trainer: Trainer) -> float:
    return float(trainer.optimizers[0].param_groups[0]["lr"])


@pytest.mark.parametrize(("reductions", "patience"), [(0, 0), (1, 0), (3, 0), (0, 2), (2, 1)])
def test_training_ends_right_after_the_reduction_too_many(
    reductions: int, patience: int, data: CIFAR10DataModule
) -> None:
    trainer = trainer_of(PlateauSchedule(reductions))
    trainer.fit(classifier(partial(NEVER_BETTER, patience=patience)), datamodule=data)
    assert trainer.current_epoch == (reductions + 1) * (patience + 1)
    assert rate(trainer) == pytest.approx(0.5 * 0.1 ** (reductions + 1))


@pytest.mark.parametrize(("bound", "epochs", "end"), [({"min_lr": 0.04}, 6, 0.04), ({"eps": 0.1}, 4, 0.05)])
def test_a_rate_that_cannot_be_reduced_so_often_ends_training_too(
    bound: dict[str, float], epochs: int, end: float, data: CIFAR10DataModule
) -> None:
    trainer = trainer_of(PlateauSchedule(3))
    trainer.fit(classifier(partial(NEVER_BETTER, patience=1, **bound)), datamodule=data)
    assert trainer.current_epoch == epochs
    assert rate(trainer) == pytest.approx(end)


def test_training_continues_without_a_plateau(data: CIFAR10DataModule) -> None:
    trainer = trainer_of(PlateauSchedule(0), max_epochs=6)
    trainer.fit(classifier(partial(NEVER_BETTER, patience=10)), datamodule=data)
    assert trainer.current_epoch == 6
    assert rate(trainer) == 0.5


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_reductions_before_an_interruption_count(data: CIFAR10DataModule, tmp_path: Path) -> None:
    def last(folder: str) -> ModelCheckpoint:
        return ModelCheckpoint(tmp_path / folder, filename="last", save_on_train_epoch_end=True)

    schedule = partial(NEVER_BETTER, patience=0)
    trainer_of(PlateauSchedule(3), last("before"), max_epochs=2).fit(classifier(schedule), datamodule=data)
    trainer = trainer_of(PlateauSchedule(3), last("after"))
    trainer.fit(classifier(schedule), datamodule=data, ckpt_path=tmp_path / "before/last.ckpt", weights_only=True)
    assert trainer.current_epoch == 4
    assert rate(trainer) == pytest.approx(0.5e-4)


@pytest.mark.parametrize("lr_scheduler", [None, partial(StepLR, step_size=1)])
def test_a_run_without_a_plateau_schedule_is_refused(lr_scheduler: Any, data: CIFAR10DataModule) -> None:
    trainer = trainer_of(PlateauSchedule(3))
    with pytest.raises(MisconfigurationException, match=r"needs lightning\.pytorch\.cli\.ReduceLROnPlateau"):
        trainer.fit(classifier(lr_scheduler), datamodule=data)
    assert trainer.global_step == 0


def test_a_negative_number_of_reductions_is_refused() -> None:
    with pytest.raises(ValueError, match="reductions must be at least 0, not -1"):
        PlateauSchedule(-1)


@pytest.mark.parametrize("monitor", METRICS)
def test_the_schedule_steps_once_an_epoch(monitor: str, data: CIFAR10DataModule) -> None:
    trainer = trainer_of(PlateauSchedule(None), max_epochs=2)
    trainer.fit(classifier(partial(NEVER_BETTER, monitor=monitor, patience=0)), datamodule=data)
    assert rate(trainer) == pytest.approx(0.5 * 0.1**2)


def test_the_schedule_gets_the_metric_of_the_epoch(data: CIFAR10DataModule) -> None:
    trainer = trainer_of(PlateauSchedule(None), max_epochs=1)
    trainer.fit(classifier(partial(ReduceLROnPlateau, monitor="val_loss")), datamodule=data)
    (schedule,) = (config.scheduler for config in trainer.lr_scheduler_configs)
    assert schedule.state_dict()["best"] == pytest.approx(float(trainer.callback_metrics["val_loss"]))


def test_the_schedule_steps_before_the_checkpoint_is_written(data: CIFAR10DataModule, tmp_path: Path) -> None:
    last = ModelCheckpoint(tmp_path, filename="last", save_on_train_epoch_end=True, enable_version_counter=False)
    trainer = trainer_of(PlateauSchedule(None), last, max_epochs=2)
    trainer.fit(classifier(partial(NEVER_BETTER, monitor="val_acc", patience=0)), datamodule=data)
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    (schedule,) = checkpoint["lr_schedulers"]
    assert schedule["last_epoch"] == 2
    assert schedule["_last_lr"] == pytest.approx([0.5 * 0.1**2])
    assert checkpoint["optimizer_states"][0]["param_groups"][0]["lr"] == pytest.approx(0.5 * 0.1**2)


def test_the_schedule_waits_for_a_validation(data: CIFAR10DataModule) -> None:
    trainer = trainer_of(PlateauSchedule(None), max_epochs=5, check_val_every_n_epoch=2)
    trainer.fit(classifier(partial(NEVER_BETTER, patience=0)), datamodule=data)
    assert rate(trainer) == pytest.approx(0.5 * 0.1**2)


def test_a_validation_metric_without_validation_is_refused_before_the_first_step(data: CIFAR10DataModule) -> None:
    trainer = trainer_of(PlateauSchedule(None), limit_val_batches=0)
    with pytest.raises(ModelError, match="monitors 'val_loss', but the run has no validation"):
        trainer.fit(classifier(NEVER_BETTER), datamodule=data)
    assert trainer.global_step == 0
