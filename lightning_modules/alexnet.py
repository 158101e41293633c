"""AlexNet for small images."""

from functools import partial
from typing import Literal, final

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import nn

from lightning_modules.classifier import ImageClassifier
from lightning_modules.errors import check_arguments
from lightning_modules.initialization import He, Initialization
from lightning_modules.metrics import OwnMetrics
from lightning_modules.width import scaled


def _convolution(inputs: int, outputs: int, batch_norm: bool) -> list[nn.Module]:
    norm = [nn.BatchNorm2d(outputs)] if batch_norm else []
    return [nn.Conv2d(inputs, outputs, kernel_size=3, padding=1), *norm, nn.ReLU(inplace=True)]


@final
class AlexNet(ImageClassifier):
    """AlexNet for small images: the channels of torchvision's (Krizhevsky 2014, "One weird trick"), 3x3 kernels.

    Krizhevsky et al. (2012) have five convolutions and three fully-connected layers, max-pooling after convolutions 1,
    2 and 5 (sec. 3.5), and dropout of 0.5 before the first two fully-connected layers (sec. 4.2). Here all kernels are
    3x3 with stride 1, so a 32x32 image still has 4x4 positions before the classifier. Local response normalization is
    left out. At 32x32 with 10 classes, the network has 35,855,178 parameters.

    Args:
        num_classes: number of logits. The command line sets it from the data.
        image_size: height and width in pixels, a multiple of 8. The command line sets it from the data.
        batch_norm: batch normalization between each convolution and its ReLU (Ioffe & Szegedy 2015, sec. 3.2), as in
            :class:`VGG`. The convolutions keep their biases, which then change nothing. Not in the paper. Use it with
            ``SmallOutput``: with the default initialization, the first loss is far above chance level.
        dropout: probability in [0, 1) of dropping an input of the two hidden fully-connected layers.
        hidden_features: outputs of each of the two hidden fully-connected layers, before ``width``.
        width: multiplier in [0.125, 2] of every convolution's output channels and of ``hidden_features`` (Howard et al.
            2017, sec. 3.3). Each product is rounded, to at least 1.
        initialization: draws the weights.
        optimizer: from parameters to an optimizer.
        decay_biases: whether weight decay also shrinks biases, and the scales and shifts of batch normalization.
        lr_scheduler: from the optimizer to a learning-rate schedule. ``None`` keeps the rate. The length of torch's
            ``OneCycleLR``, ``CosineAnnealingLR`` and ``PolynomialLR`` may be left out: it is then the run's.
        lr_scheduler_interval: whether the schedule steps every epoch or every optimizer step. By default every step if
            its length is left out, else every epoch.
        label_smoothing: share of a label, in [0, 1), that is divided equally among all classes (Szegedy et al. 2016,
            sec. 7). It smooths the loss that training minimizes. All losses that are logged stay plain cross-entropies.
        metrics: further metrics by name, such as ``f1``: see :class:`ImageClassifier`.

    Raises:
        ValueError: if an argument is out of its range.
        ModelError: if a metric's name does not fit, or if it gives no single number of logits and labels.
    """

    def __init__(
        self,
        num_classes: int = 10,
        image_size: int = 32,
        batch_norm: bool = False,
        dropout: float = 0.5,
        hidden_features: int = 4096,
        width: float = 1.0,
        initialization: Initialization = He("fan_out"),
        optimizer: OptimizerCallable = partial(torch.optim.Adam, lr=1e-4),
        decay_biases: bool = True,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_scheduler_interval: Literal["epoch", "step"] | None = None,
        label_smoothing: float = 0.0,
        metrics: OwnMetrics | None = None,
    ) -> None:
        check_arguments("AlexNet", 3, image_size, dropout, hidden_features, width)
        first, second, third, fourth, fifth = (scaled(channels, width) for channels in (64, 192, 384, 256, 256))
        hidden = scaled(hidden_features, width)
        network = nn.Sequential(
            *_convolution(3, first, batch_norm),
            nn.MaxPool2d(2),
            *_convolution(first, second, batch_norm),
            nn.MaxPool2d(2),
            *_convolution(second, third, batch_norm),
            *_convolution(third, fourth, batch_norm),
            *_convolution(fourth, fifth, batch_norm),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(fifth * (image_size // 8) ** 2, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(hidden, hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, num_classes),
        )
        initialization(network)
        super().__init__(
            network,
            num_classes,
            image_size,
            optimizer,
            lr_scheduler,
            lr_scheduler_interval=lr_scheduler_interval,
            decay_biases=decay_biases,
            label_smoothing=label_smoothing,
            metrics=metrics,
        )
