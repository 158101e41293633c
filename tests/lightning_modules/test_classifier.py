import copy
import math
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import ReduceLROnPlateau
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader

from datamodules import Batch, CIFAR10DataModule
from lightning_modules import AlexNet, ImageClassifier
from lightning_modules.classifier import scaler_of
from lightning_modules.errors import ModelError
from overfitting_lab.doctor.gradients import measure
from tests.conftest import Flags, Script, weights_of
from tests.networks import Interval, linear_classifier, quiet_trainer


@pytest.fixture
def data(image_folder: Path) -> CIFAR10DataModule:
    """Return splits that the batches do not divide evenly: 4 steps an epoch."""
    return CIFAR10DataModule(str(image_folder), "folder", train_size=47, val_size=23, batch_size=15, augment="none")


@pytest.fixture
def among(monkeypatch: pytest.MonkeyPatch) -> Callable[[ImageClassifier, int], ImageClassifier]:
    """Tell a classifier that it is one of several processes."""

    def attach(model: ImageClassifier, world_size: int) -> ImageClassifier:
        monkeypatch.setattr(model, "log_dict", lambda *arguments, **options: None)
        model.trainer = cast(Trainer, SimpleNamespace(world_size=world_size))
        return model

    return attach


HALVE_EACH_STEP = partial(StepLR, step_size=1, gamma=0.5)
Among = Callable[[ImageClassifier, int], ImageClassifier]


def gradient(model: ImageClassifier, loss: Tensor) -> Tensor:
    return torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(model.parameters()))])


@pytest.mark.parametrize("parts", [[7], [4, 3], [3, 2, 2], [1, 5, 1], [6, 1, 0]])
def test_loss_and_gradient_over_processes_are_the_mean_of_the_whole_step(parts: list[int], among: Among) -> None:
    model = among(linear_classifier(0.1), len(parts))
    images, labels = torch.rand(7, 3, 32, 32), torch.arange(7) % 3
    shares = zip(*(torch.split(whole, parts) for whole in (images, labels, torch.arange(7))), strict=True)
    steps = [model.training_step(Batch(part, its, indices, 7), 0) for part, its, indices in shares]
    expected = F.cross_entropy(model(images), labels)
    assert torch.allclose(torch.cat([step["logits"] for step in steps]), model(images), atol=1e-6)
    assert torch.allclose(torch.stack([step["loss"] for step in steps]).mean(), expected, atol=1e-6)
    gradients = torch.stack([gradient(model, step["loss"]) for step in steps])
    assert torch.allclose(gradients.mean(0), gradient(model, expected), atol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("parts", [[7], [3, 2, 2], [6, 1, 0]])
def test_the_smoothed_and_mixed_loss_is_torchs_of_soft_labels(parts: list[int], smoothing: float, among: Among) -> None:
    model = among(linear_classifier(0.1, label_smoothing=smoothing), len(parts))
    images, labels, others = torch.rand(7, 3, 32, 32), torch.arange(7) % 3, torch.arange(7) // 3
    own = torch.linspace(0.5, 1, 7)
    steps = []
    for part, its, theirs, share in zip(
        *(torch.split(each, parts) for each in (images, labels, others, own)), strict=True
    ):
        partners = Batch(part, theirs, theirs, 7)
        steps.append(model.training_step(Batch(part, its, its, 7, partners, share), 0))
    targets = own[:, None] * F.one_hot(labels, 3) + (1 - own[:, None]) * F.one_hot(others, 3)
    expected = F.cross_entropy(model(images), targets, label_smoothing=smoothing)
    assert torch.allclose(torch.stack([step["loss"] for step in steps]).mean(), expected, atol=1e-6)
    gradients = torch.stack([gradient(model, step["loss"]) for step in steps])
    assert torch.allclose(gradients.mean(0), gradient(model, expected), atol=1e-6)
    plain = F.cross_entropy(model(images), labels)
    assert torch.allclose(torch.stack([step["cross_entropy"] for step in steps]).mean(), plain, atol=1e-6)
    assert model.train_metrics.compute()["train_loss"].item() == pytest.approx(plain.item(), rel=1e-5)


def test_label_smoothing_is_torchs_and_of_the_loss_that_is_minimized_alone(among: Among) -> None:
    model = among(linear_classifier(0.1, label_smoothing=0.3), 1)
    images, labels = torch.rand(7, 3, 32, 32), torch.arange(7) % 3
    batch = Batch(images, labels, torch.arange(7), 7)
    loss = model.training_step(batch, 0)["loss"]
    assert torch.allclose(loss, F.cross_entropy(model(images), labels, label_smoothing=0.3))
    model.validation_step(batch, 0)
    model.validation_step(batch, 0, dataloader_idx=1)
    model.test_step(batch, 0)
    plain = pytest.approx(F.cross_entropy(model(images), labels).item())
    for metrics in (model.train_metrics, model.val_metrics, model.probe_metrics, model.test_metrics):
        assert metrics.compute()[f"{metrics.prefix}loss"] == plain


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
    """Return loss, accuracy and confusion of a whole split, computed at once."""
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
    model = linear_classifier(lr=0.0)  # so that the weights of the epoch's start are those of its end
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
    quiet_trainer(Record(), max_epochs=3).fit(linear_classifier(lr=0.001), datamodule=data)
    assert seen == pytest.approx(expected, rel=1e-4)
    assert len(set(seen)) == 3


def test_a_loss_that_is_not_finite_is_logged(data: CIFAR10DataModule) -> None:
    trainer = quiet_trainer(max_epochs=1)
    trainer.fit(linear_classifier(lr=math.inf), datamodule=data)
    assert math.isnan(float(trainer.callback_metrics["train_loss"]))


def test_predictions_are_probabilities() -> None:
    model, images = linear_classifier(0.1), torch.rand(5, 3, 32, 32)
    probabilities = model.predict_step(images)
    assert torch.allclose(probabilities, model(images).softmax(1))
    assert model.to(torch.bfloat16).predict_step(images.bfloat16()).dtype == torch.float32


# Learning-rate schedules


@pytest.mark.parametrize(
    ("lr_scheduler", "interval", "steps"),
    [(None, "epoch", 0), (HALVE_EACH_STEP, "epoch", 2), (HALVE_EACH_STEP, "step", 8)],
)
def test_a_schedule_steps_every_epoch_or_every_step(
    lr_scheduler: Any, interval: Interval, steps: int, data: CIFAR10DataModule
) -> None:
    trainer = quiet_trainer()
    trainer.fit(linear_classifier(0.1, lr_scheduler, interval), datamodule=data)
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.1 * 0.5**steps)


@pytest.mark.parametrize("monitor", ["val_accuracy", "test_loss", ""])
def test_a_metric_that_does_not_exist_is_refused_before_the_first_step(monitor: str, data: CIFAR10DataModule) -> None:
    trainer = quiet_trainer()
    message = f"monitors {monitor!r}, which no epoch logs.*train_loss, train_acc, val_loss, val_acc"
    with pytest.raises(ModelError, match=message):
        trainer.fit(linear_classifier(0.1, partial(ReduceLROnPlateau, monitor=monitor)), datamodule=data)
    assert trainer.global_step == 0


# Clipping


def float16_on_a_cpu() -> MixedPrecision:
    return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=128.0))


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(
    ("dtype", "settings"),
    [
        (torch.float32, {"precision": "32-true"}),
        (torch.bfloat16, {"precision": "bf16-mixed"}),
        (torch.float16, {"plugins": float16_on_a_cpu}),
    ],
)
@pytest.mark.parametrize(("algorithm", "limit"), [("norm", 0.3), (None, 0.3), ("value", 0.01)])
def test_clipping_is_that_of_a_plain_loop(
    dtype: torch.dtype, settings: dict[str, Any], fused: bool, algorithm: str | None, limit: float
) -> None:
    settings = {name: value() if callable(value) else value for name, value in settings.items()}
    assert_clips_as_a_plain_loop("cpu", dtype, settings, fused, algorithm, limit)


def assert_clips_as_a_plain_loop(
    device: str, dtype: torch.dtype, settings: dict[str, Any], fused: bool, algorithm: str | None, limit: float
) -> None:
    """Train three steps of accumulated gradients that are clipped, and compare the weights with a plain loop's."""
    torch.manual_seed(0)
    network, clipped = linear_classifier(0.1), []
    reference = copy.deepcopy(network.network).to(device)
    model = ImageClassifier(network.network, 3, 32, partial(torch.optim.SGD, lr=0.1, fused=fused), None, "epoch")
    images = [Batch(torch.rand(6, 3, 32, 32), torch.arange(6) % 3, torch.arange(6), 6) for _ in range(5)]
    clipping: dict[str, Any] = {"gradient_clip_val": limit, "gradient_clip_algorithm": algorithm}
    accelerator = "gpu" if device == "cuda" else device
    trainer = quiet_trainer(max_epochs=1, accumulate_grad_batches=2, accelerator=accelerator, **clipping, **settings)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers|.*`val_dataloader`")
        trainer.fit(model, DataLoader(cast(Any, images), batch_size=None))

    optimizer = torch.optim.SGD(reference.parameters(), lr=0.1)
    weights = list(reference.parameters())
    for step in (images[:2], images[2:4], images[4:]):
        optimizer.zero_grad()
        for batch in (each.to(torch.device(device)) for each in step):
            with torch.autocast(device, dtype, enabled=dtype != torch.float32, cache_enabled=False):
                logits = reference(batch.images)
            torch.autograd.backward(F.cross_entropy(logits.float(), batch.labels) / 2)
        kind = math.inf if algorithm == "value" else 2.0
        clipped.append(nn.utils.get_total_norm([cast(Tensor, part.grad) for part in weights], kind) > limit)
        clip: Callable[..., object] = nn.utils.clip_grad_value_ if algorithm == "value" else nn.utils.clip_grad_norm_
        clip(weights, limit)
        optimizer.step()
    assert all(clipped), "this limit changes nothing"
    trained = [weight.to(device) for weight in model.network.parameters()]
    torch.testing.assert_close(trained, [weight.detach() for weight in weights], rtol=1e-3, atol=1e-4)


def test_float16_gradients_are_measured_without_their_scale() -> None:
    def measured(fused: bool) -> list[list[float]]:
        torch.manual_seed(0)
        network, seen = linear_classifier(0.1).network, []
        model = ImageClassifier(network, 3, 32, partial(torch.optim.Adam, lr=0.1, fused=fused), None, "epoch")
        batch = Batch(torch.rand(6, 3, 32, 32), torch.arange(6) % 3, torch.arange(6), 6)

        class Measuring(Callback):
            def on_before_optimizer_step(self, trainer: Trainer, _: Any, optimizer: Optimizer) -> None:
                scaler = scaler_of(trainer, optimizer)
                assert (scaler is not None) == fused
                seen.append([each.gradient for each in measure(network, scaler.get_scale() if scaler else 1.0)])

        trainer = quiet_trainer(Measuring(), max_epochs=1, plugins=float16_on_a_cpu(), limit_val_batches=0)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*does not have many workers|.*`val_dataloader`")
            trainer.fit(model, DataLoader(cast(Any, [batch] * 3), batch_size=None))
        return seen

    fused, plain = measured(fused=True), measured(fused=False)
    assert len(fused) == 3
    torch.testing.assert_close(torch.tensor(fused), torch.tensor(plain), rtol=1e-3, atol=1e-4)


# Checkpoints


def test_from_checkpoint_returns_the_network_that_fit_trained(run_script: Script, tiny: Flags, tmp_path: Path) -> None:
    fewer = ("--data.train_size=20", "--data.val_size=10", "--trainer.max_epochs=1", "--model.dropout=0.25")
    outcome = run_script("fit", "--config", "overfit.yaml", *tiny, *fewer)
    assert outcome.status == 0, outcome.err
    folder = tmp_path / "lightning_logs" / "overfit" / "version_0"
    model = ImageClassifier.from_checkpoint(next(folder.rglob("best.ckpt")))
    assert isinstance(model, AlexNet)
    assert not model.training
    assert model.num_classes == 3
    assert {layer.p for layer in model.modules() if isinstance(layer, nn.Dropout)} == {0.25}
    torch.testing.assert_close(dict(model.network.state_dict()), weights_of(folder), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"hyper_parameters": {}}, "names no image classifier"),
        ({"hyper_parameters": {"_class_path": "torch.nn.Linear"}}, "names no image classifier"),
        ({"hyper_parameters": {"_class_path": "lightning_modules.ResNet"}}, "names no image classifier"),
        ({"hyper_parameters": {"_class_path": "nowhere.ResNet"}}, "names no image classifier, .* exported model.onnx"),
        ({"hyper_parameters": {"_class_path": "AlexNet"}}, "names no image classifier"),
        ({"0.weight": torch.zeros(1)}, "names no image classifier"),
    ],
)
def test_a_checkpoint_of_no_classifier_is_refused(content: dict[str, Any], words: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "other.ckpt")
    with pytest.raises(ModelError, match=rf"other\.ckpt .*{words}"):
        ImageClassifier.from_checkpoint(tmp_path / "other.ckpt")


def test_a_layer_that_stays_in_evaluation_is_left_there() -> None:
    classifier = linear_classifier(0.1)
    _, frozen = classifier.network.children()
    frozen.eval()
    classifier.check_network()
    assert classifier.training
    assert not frozen.training
