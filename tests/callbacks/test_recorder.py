from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from datamodules import CIFAR10DataModule
from overfitting_lab.callbacks.epochs import EpochRecorder, recorder_of
from tests.networks import linear_classifier, quiet_trainer


class Speeds(Callback):
    """Collect the training images per second that are known at each step."""

    def __init__(self) -> None:
        self.found: list[float | None] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.found.append(recorder_of(trainer).images_per_second)


def test_the_speed_is_of_the_epochs_that_have_ended(image_folder: Path) -> None:
    data = CIFAR10DataModule(str(image_folder), "folder", train_size=30, val_size=10, batch_size=10)
    recorder, speeds = EpochRecorder(), Speeds()
    quiet_trainer(recorder, speeds, max_epochs=3).fit(linear_classifier(0.1, None), datamodule=data)
    first, second, third = speeds.found[:3], speeds.found[3:6], speeds.found[6:]
    assert first == [None] * 3
    assert second[0] is not None
    assert second == [second[0]] * 3
    assert third == [third[0]] * 3
    again = EpochRecorder()
    again.load_state_dict(recorder.state_dict())
    assert again.images_per_second == recorder.images_per_second
