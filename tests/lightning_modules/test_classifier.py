import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, cast

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import ReduceLROnPlateau
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import StepLR

from datamodules import Batch, CIFAR10DataModule
from lightning_modules import VGG, AlexNet, ImageClassifier
from lightning_modules.errors import ModelError
from tests.conftest import Outcome

HALVED = partial(
    ReduceLROnPlateau, factor=0.5, patience=0, threshold=1e9
)  # no value is ever better than the one before


def classifier(
    lr: float = 0.1,
    lr_scheduler: Callable[[Optimizer], Any] | None = None,
    interval: Literal["epoch", "step"] = "epoch",
) -> ImageClassifier:
    """The smallest: a linear map from pixels to three logits."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 3))
    return ImageClassifier(network, 3, 32, partial(SGD, lr=lr), lr_scheduler, interval)


def quiet_trainer(**settings: Any) -> Trainer:
    usual: dict[str, Any] = {
        "max_epochs": 2,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "log_every_n_steps": 1,
    }
    return Trainer(**usual | settings)


@pytest.fixture
def data(image_folder: Path) -> CIFAR10DataModule:
    """Splits that the batches do not divide evenly: 4 steps an epoch."""
    return CIFAR10DataModule(image_folder, "folder", train_size=47, val_size=23, batch_size=15, augment="none")


@pytest.fixture
def among(monkeypatch: pytest.MonkeyPatch) -> Callable[[ImageClassifier, int], ImageClassifier]:
    """Lets a classifier believe that it is one of several processes."""

    def attach(model: ImageClassifier, world_size: int) -> ImageClassifier:
        monkeypatch.setattr(model, "log_dict", lambda *arguments, **options: None)
        model.trainer = cast(Trainer, SimpleNamespace(world_size=world_size))
        return model

    return attach


Among = Callable[[ImageClassifier, int], ImageClassifier]


def gradient(model: ImageClassifier, loss: Tensor) -> Tensor:
    return torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(model.parameters()))])


def test_the_loss_is_the_mean_cross_entropy(among: Among) -> None:
    model = among(classifier(), 1)
    images, labels = torch.rand(7, 3, 32, 32), torch.arange(7) % 3
    loss, logits = model.training_step(Batch(images, labels, torch.arange(7), 7), 0).values()
    expected = F.cross_entropy(model(images), labels)
    assert torch.allclose(logits, model(images))
    assert torch.allclose(loss, expected)
    assert torch.allclose(gradient(model, loss), gradient(model, expected))


@pytest.mark.parametrize("parts", [[4, 3], [3, 2, 2], [1, 5, 1], [6, 1, 0]])
def test_the_mean_gradient_over_processes_is_that_of_the_whole_step(parts: list[int], among: Among) -> None:
    model = among(classifier(), len(parts))
    images, labels = torch.rand(7, 3, 32, 32), torch.arange(7) % 3
    shares = zip(*(torch.split(whole, parts) for whole in (images, labels, torch.arange(7))), strict=True)
    batches = [Batch(part, its, indices, 7) for part, its, indices in shares]
    gradients = [gradient(model, model.training_step(batch, 0)["loss"]) for batch in batches]
    expected = gradient(model, F.cross_entropy(model(images), labels))
    assert torch.allclose(torch.stack(gradients).mean(0), expected, atol=1e-6)


def test_a_process_without_an_image_counts_nothing(among: Among) -> None:
    model = among(AlexNet(num_classes=3, hidden_features=16, dropout=0), 2)
    images, labels = torch.rand(1, 3, 32, 32), torch.tensor([2])
    for batch in (Batch(images, labels, torch.arange(1), 1), Batch(images[:0], labels[:0], torch.arange(0), 1)):
        model.validation_step(batch, 0)
        model.test_step(batch, 0)
    for confusion in (model.val_confusion, model.test_confusion):
        assert int(confusion.compute().sum()) == 1
    expected = F.cross_entropy(model(images), labels).item()
    for metrics, name in ((model.val_metrics, "val_loss"), (model.test_metrics, "test_loss")):
        assert metrics.compute()[name] == pytest.approx(expected)


def evaluated(model: ImageClassifier, data: CIFAR10DataModule, split: str) -> tuple[float, float, Tensor]:
    """Loss, accuracy and confusion of a whole split, all at once."""
    part = "test" if split == "test" else "train"
    indices = getattr(data, f"{split}_indices")
    images = getattr(data.images, f"{part}_images")[indices].permute(0, 3, 1, 2) / 255
    labels = getattr(data.images, f"{part}_labels")[indices]
    mean, std = (torch.tensor(value)[:, None, None] for value in (data.mean, data.std))
    with torch.inference_mode():
        logits = model.eval()((images - mean) / std)
    confusion = torch.zeros(3, 3, dtype=torch.int64)
    for label, guess in zip(labels, logits.argmax(1), strict=True):
        confusion[label, guess] += 1
    return float(F.cross_entropy(logits, labels)), float((logits.argmax(1) == labels).float().mean()), confusion


@pytest.mark.parametrize("split", ["val", "test"])
def test_evaluation_counts_every_image_once(split: str, data: CIFAR10DataModule) -> None:
    model = AlexNet(num_classes=3, hidden_features=16)
    trainer = quiet_trainer()
    (trainer.validate if split == "val" else trainer.test)(model, datamodule=data, verbose=False)
    loss, accuracy, confusion = evaluated(model, data, split)
    assert float(trainer.callback_metrics[f"{split}_loss"]) == pytest.approx(loss, rel=1e-4)
    assert float(trainer.callback_metrics[f"{split}_acc"]) == pytest.approx(accuracy)
    assert torch.equal(getattr(model, f"{split}_confusion").compute(), confusion)


def test_fitting_counts_every_image_of_the_epoch_once(data: CIFAR10DataModule) -> None:
    model = classifier(lr=0.0)  # so that the weights of the epoch's start are those of its end
    trainer = quiet_trainer()
    trainer.fit(model, datamodule=data)
    for split in ("train", "val"):
        loss, accuracy, _ = evaluated(model, data, split)
        assert float(trainer.callback_metrics[f"{split}_loss"]) == pytest.approx(loss, rel=1e-4)
        assert float(trainer.callback_metrics[f"{split}_acc"]) == pytest.approx(accuracy)
    assert int(model.val_confusion.compute().sum()) == 23


def test_metrics_of_an_epoch_are_of_that_epoch_alone(data: CIFAR10DataModule) -> None:
    seen: list[float] = []

    class Record(Callback):
        def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            seen.append(float(trainer.callback_metrics["val_loss"]))
            expected.append(evaluated(cast(ImageClassifier, pl_module), data, "val")[0])

    expected: list[float] = []
    quiet_trainer(max_epochs=3, callbacks=Record()).fit(classifier(lr=0.001), datamodule=data)
    assert seen == pytest.approx(expected, rel=1e-4)
    assert len(set(seen)) == 3


def test_a_loss_that_is_not_a_number_is_not_hidden(data: CIFAR10DataModule) -> None:
    trainer = quiet_trainer(max_epochs=1)
    trainer.fit(classifier(lr=math.inf), datamodule=data)
    assert math.isnan(float(trainer.callback_metrics["train_loss"]))


def test_predictions_are_probabilities() -> None:
    model, images = classifier(), torch.rand(5, 3, 32, 32)
    probabilities = model.predict_step(images)
    assert torch.allclose(probabilities, model(images).softmax(1))
    assert model.to(torch.bfloat16).predict_step(images.bfloat16()).dtype == torch.float32


# Learning-rate schedules


def rate_after(model: ImageClassifier, data: CIFAR10DataModule, **settings: Any) -> float:
    trainer = quiet_trainer(**settings)
    trainer.fit(model, datamodule=data)
    return cast(float, trainer.optimizers[0].param_groups[0]["lr"])


def test_without_a_schedule_the_rate_stays(data: CIFAR10DataModule) -> None:
    assert rate_after(classifier(), data) == 0.1


@pytest.mark.parametrize(("interval", "steps"), [("epoch", 2), ("step", 8)])
def test_a_schedule_steps_every_epoch_or_every_step(
    interval: Literal["epoch", "step"], steps: int, data: CIFAR10DataModule
) -> None:
    model = classifier(0.1, partial(StepLR, step_size=1, gamma=0.5), interval)
    assert rate_after(model, data) == pytest.approx(0.1 * 0.5**steps)


def refused_before_the_first_step(model: ImageClassifier, data: CIFAR10DataModule, **settings: Any) -> str:
    trainer = quiet_trainer(**settings)
    with pytest.raises(ModelError) as caught:
        trainer.fit(model, datamodule=data)
    assert trainer.global_step == 0
    return str(caught.value)


@pytest.mark.parametrize("monitor", ["val_accuracy", "test_loss", ""])
def test_a_metric_that_does_not_exist_is_refused_before_the_first_step(monitor: str, data: CIFAR10DataModule) -> None:
    message = refused_before_the_first_step(classifier(0.1, partial(HALVED, monitor=monitor)), data)
    assert f"monitors {monitor!r}, which no epoch logs" in message
    assert "train_loss, train_acc, val_loss, val_acc" in message


# Checkpoints


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
@pytest.mark.parametrize("step", [2, 4, 7])
def test_a_run_that_goes_on_ends_where_one_without_a_break_ends(
    step: int, data: CIFAR10DataModule, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    start = classifier().state_dict()

    def final_weights(ckpt_path: Path | None = None) -> Tensor:
        model = classifier()
        model.load_state_dict(start)
        folder = tmp_path / ("resumed" if ckpt_path else "whole")
        every = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
        trainer = quiet_trainer(enable_checkpointing=True, callbacks=every)
        trainer.fit(model, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
        assert trainer.global_step == 8
        return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])

    whole = final_weights()
    resumed = final_weights(tmp_path / "whole" / f"step={step}.ckpt")
    assert torch.allclose(resumed, whole, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (AlexNet, {"hidden_features": 8}, r"network\.\d+\.\w+ is \(.*8.*\) there and \(.*16.*\) here"),
        (AlexNet, {"num_classes": 3}, r"is \(3.*\) there and \(10.*\) here"),
        (VGG, {"configuration": "A"}, r"of another network than AlexNet"),
    ],
)
def test_a_checkpoint_of_another_network_is_refused(
    kind: type[AlexNet | VGG], settings: dict[str, Any], message: str
) -> None:
    theirs = kind(**{"hidden_features": 16, **settings})
    with pytest.raises(ModelError, match=message) as caught:
        AlexNet(hidden_features=16).on_load_checkpoint({"state_dict": theirs.state_dict()})
    assert "use the checkpoint with the config.yaml of the run it is from" in str(caught.value)


def test_a_checkpoint_of_the_same_network_is_taken() -> None:
    AlexNet(hidden_features=16).on_load_checkpoint({"state_dict": AlexNet(hidden_features=16).state_dict()})


def test_a_checkpoint_of_the_command_line_gives_its_network_back(
    run_script: Callable[..., Outcome], tiny: tuple[str, ...], tmp_path: Path
) -> None:
    fewer = ("--data.train_size=20", "--data.val_size=10", "--trainer.max_epochs=1", "--model.dropout=0.25")
    outcome = run_script("fit", "--config", "overfit.yaml", *tiny, *fewer)
    assert outcome.status == 0, outcome.err
    folder = tmp_path / "lightning_logs" / "overfit" / "version_0"
    model = ImageClassifier.from_checkpoint(next(folder.rglob("best.ckpt")))
    assert isinstance(model, AlexNet)
    assert not model.training
    assert model.num_classes == 3
    assert {layer.p for layer in model.modules() if isinstance(layer, nn.Dropout)} == {0.25}
    weights = torch.load(folder / "weights.pth", weights_only=True)
    for name, value in model.network.state_dict().items():
        assert torch.equal(value, weights[name])


@pytest.mark.parametrize(
    "content",
    [
        {"hyper_parameters": {}},
        {"hyper_parameters": {"_class_path": "torch.nn.Linear"}},
        {"hyper_parameters": {"_class_path": "lightning_modules.ResNet"}},
        {"hyper_parameters": {"_class_path": "nowhere.ResNet"}},
        {"hyper_parameters": {"_class_path": "AlexNet"}},
        {"0.weight": torch.zeros(1)},
    ],
)
def test_a_checkpoint_of_no_classifier_is_refused(content: dict[str, Any], tmp_path: Path) -> None:
    torch.save(content, tmp_path / "other.ckpt")
    with pytest.raises(ModelError, match=r"other\.ckpt names no image classifier"):
        ImageClassifier.from_checkpoint(tmp_path / "other.ckpt")
