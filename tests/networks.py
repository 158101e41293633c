"""Small networks, sound and faulty, and a Trainer that prints and keeps nothing."""

from functools import partial
from itertools import pairwise
from typing import Any, Literal, final

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from lightning_modules import ImageClassifier
from lightning_modules.initialization import He, Initialization, Normal

Interval = Literal["epoch", "step"]


class Times(nn.Module):
    """Multiply the input by a number."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, values: Tensor) -> Tensor:
        return values * self.factor


class Small(ImageClassifier):
    """Fully-connected layers on 4x4 pixels. The defaults learn; ``weight_std=None`` means He's rule."""

    def __init__(
        self,
        num_classes: int = 10,
        image_size: int = 32,
        layers: int = 2,
        width: int = 32,
        weight_std: float | None = None,
        bias: float = 0,
        sigmoid: bool = False,
        softmax: bool = False,
        factor: float = 1,
        optimizer: OptimizerCallable = partial(torch.optim.Adam, lr=1e-3),
        lr_scheduler: LRSchedulerCallable | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        widths = [48, *[width] * layers]
        hidden: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            hidden += [nn.Linear(inputs, outputs), nn.Sigmoid() if sigmoid else nn.ReLU()]
        network = nn.Sequential(
            nn.AvgPool2d(image_size // 4), nn.Flatten(), *hidden, nn.Linear(widths[-1], num_classes), Times(factor)
        )
        if softmax:
            network.append(nn.Softmax(dim=1))
        initialization: Initialization = He() if weight_std is None else Normal(weight_std)
        initialization(network)
        for layer in network[:-2]:
            if isinstance(layer, nn.Linear):
                nn.init.constant_(layer.bias, bias)
        super().__init__(
            network, num_classes, image_size, optimizer, lr_scheduler, "epoch", label_smoothing=label_smoothing
        )


@final
class Tiny(ImageClassifier):
    """Two convolutions and two fully-connected layers with dropout: AlexNet's kinds of layers, at next to no cost."""

    def __init__(
        self,
        num_classes: int = 10,
        image_size: int = 32,
        dropout: float = 0.5,
        hidden_features: int = 16,
        initialization: Initialization = He("fan_out"),
        optimizer: OptimizerCallable = partial(torch.optim.Adam, lr=1e-3),
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_scheduler_interval: Interval | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        convolutions = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, padding=1)]
        pool = [nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(dropout)]
        linear = [nn.Linear(32, hidden_features), nn.ReLU(), nn.Linear(hidden_features, num_classes)]
        network = nn.Sequential(*convolutions, *pool, *linear)
        initialization(network)
        super().__init__(
            network,
            num_classes,
            image_size,
            optimizer,
            lr_scheduler,
            lr_scheduler_interval,
            label_smoothing=label_smoothing,
        )


@final
class Normalized(ImageClassifier):
    """A convolution with batch normalization, and a linear layer behind dropout."""

    def __init__(
        self,
        num_classes: int = 10,
        image_size: int = 32,
        optimizer: OptimizerCallable = partial(torch.optim.Adam, lr=1e-2),
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        convolution = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2)]
        network = nn.Sequential(*convolution, nn.Flatten(), nn.Dropout(0.2), nn.Linear(32, num_classes))
        super().__init__(network, num_classes, image_size, optimizer, lr_scheduler, "epoch")


def linear_classifier(
    lr: float, lr_scheduler: Any = None, interval: Interval = "epoch", label_smoothing: float = 0.0
) -> ImageClassifier:
    """Return the smallest classifier: a linear map from pixels to three logits."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 3))
    optimizer = partial(torch.optim.SGD, lr=lr)
    return ImageClassifier(network, 3, 32, optimizer, lr_scheduler, interval, label_smoothing=label_smoothing)


def quiet_trainer(*callbacks: Callback, max_epochs: int = 2, accelerator: str = "cpu", **settings: Any) -> Trainer:
    """Return a Trainer that writes checkpoints only if one of the callbacks does."""
    return Trainer(
        max_epochs=max_epochs,
        accelerator=accelerator,
        devices=1,
        logger=False,
        enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        callbacks=[*callbacks],
        **settings,
    )


class ExportFault(nn.Module):
    """Return the input, except in an export."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault = fault

    def forward(self, values: Tensor) -> Tensor:
        if not torch.compiler.is_exporting():
            return values
        if self.fault == "branch" and values.sum() > 0:
            return values / 2
        return values * 2


@final
class NotExportable(ImageClassifier):
    """One layer on 4x4 pixels whose exports have a fault: other weights, another network, or a branch."""

    def __init__(
        self,
        num_classes: int = 10,
        image_size: int = 32,
        fault: Literal["weights", "network", "branch"] = "weights",
        optimizer: OptimizerCallable = partial(torch.optim.Adam, lr=1e-2),
    ) -> None:
        pool = nn.AvgPool2d(image_size // 4)
        network = nn.Sequential(pool, nn.Flatten(), nn.Linear(48, num_classes), ExportFault(fault))
        He()(network)
        super().__init__(network, num_classes, image_size, optimizer, None, "epoch")
        if fault == "weights":
            self.register_state_dict_post_hook(_scale)  # type: ignore[no-untyped-call]


def _scale(module: nn.Module, state_dict: dict[str, Tensor], *_: object) -> None:
    for name in state_dict:
        state_dict[name] = 2 * state_dict[name]
