"""The VGG networks."""

from functools import partial
from typing import Literal, final

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import nn

from lightning_modules.classifier import ImageClassifier
from lightning_modules.initialization import He, Initialization, SmallOutput

Configuration = Literal["A", "B", "C", "D", "E"]

# Simonyan & Zisserman (2014), table 1: kernel sizes of the convolutions of each of the five blocks.
_CHANNELS = (64, 128, 256, 512, 512)
_KERNELS: dict[Configuration, tuple[tuple[int, ...], ...]] = {
    "A": ((3,), (3,), (3, 3), (3, 3), (3, 3)),
    "B": ((3, 3), (3, 3), (3, 3), (3, 3), (3, 3)),
    "C": ((3, 3), (3, 3), (3, 3, 1), (3, 3, 1), (3, 3, 1)),
    "D": ((3, 3), (3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3)),
    "E": ((3, 3), (3, 3), (3, 3, 3, 3), (3, 3, 3, 3), (3, 3, 3, 3)),
}


def _features(configuration: Configuration, batch_norm: bool) -> list[nn.Module]:
    layers: list[nn.Module] = []
    inputs = 3
    for outputs, kernels in zip(_CHANNELS, _KERNELS[configuration], strict=True):
        for kernel in kernels:
            layers.append(nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2))
            if batch_norm:
                layers.append(nn.BatchNorm2d(outputs))
            layers.append(nn.ReLU(inplace=True))
            inputs = outputs
        layers.append(nn.MaxPool2d(2))
    return layers


@final
class VGG(ImageClassifier):
    """VGG of Simonyan & Zisserman (2014), table 1: 3x3 convolutions in five blocks, each ended by max-pooling.

    Configuration D is VGG16; at 224x224 with 10 classes it has 134,301,514 parameters. The first fully-connected layer
    takes what the five poolings leave: 7x7 positions of a 224x224 image, one of a 32x32 image. Dropout stands after
    the two hidden fully-connected layers (sec. 3.1).

    Args:
        num_classes: number of logits; the command line takes it from the data.
        image_size: height and width in pixels, a multiple of 32; the command line takes it from the data.
        configuration: column of table 1: A (11 weight layers), B (13), C (16, with 1x1 convolutions), D (16), E (19).
        batch_norm: batch normalization after every convolution (Ioffe & Szegedy 2015); not in the paper.
        dropout: probability in [0, 1) of dropping an output of the two hidden fully-connected layers.
        hidden_features: width of the two hidden fully-connected layers.
        initialization: how the weights are drawn. With the paper's normal of variance 0.01 the first loss is about
            10^7 at this depth; the default keeps the variance of the activations, and starts at ln(num_classes).
        optimizer: from parameters to an optimizer.
        lr_scheduler: from the optimizer to a learning-rate schedule; none keeps the rate.
        lr_scheduler_interval: whether the schedule steps every epoch or every optimizer step.

    Raises:
        ValueError: if an argument is out of its range.
    """

    def __init__(
        self,
        num_classes: int = 10,
        image_size: int = 32,
        configuration: Configuration = "D",
        batch_norm: bool = False,
        dropout: float = 0.5,
        hidden_features: int = 4096,
        initialization: Initialization = SmallOutput(He("fan_in")),
        optimizer: OptimizerCallable = partial(torch.optim.SGD, lr=0.01, momentum=0.9, weight_decay=5e-4),
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_scheduler_interval: Literal["epoch", "step"] = "epoch",
    ) -> None:
        if image_size < 32 or image_size % 32:
            raise ValueError(f"VGG halves its image five times: image_size must be a multiple of 32, not {image_size}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), not {dropout}")
        if hidden_features < 1:
            raise ValueError(f"hidden_features must be at least 1, not {hidden_features}")
        positions = (image_size // 32) ** 2
        network = nn.Sequential(
            *_features(configuration, batch_norm),
            nn.Flatten(),
            nn.Linear(512 * positions, hidden_features),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(hidden_features, hidden_features),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(hidden_features, num_classes),
        )
        initialization(network)
        super().__init__(network, num_classes, image_size, optimizer, lr_scheduler, lr_scheduler_interval)
