"""The VGG networks."""

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Literal, final

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from lightning_modules.classifier import ImageClassifier
from lightning_modules.convolution import Convolution
from lightning_modules.errors import ModelError, check_arguments
from lightning_modules.initialization import He, Initialization, SmallOutput
from lightning_modules.metrics import OwnMetrics
from lightning_modules.width import scaled
from overfitting_lab.runs.checkpoints import load_saved
from overfitting_lab.runs.files import RunError, RunFiles

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

# Simonyan & Zisserman (2014, sec. 3.1): a deeper network begins with so many layers of a trained configuration A, by
# block. The classifier counts as block 6.
_PRETRAINED = (1, 1, 2, 0, 0, 3)


def _layers(
    num_classes: int,
    image_size: int,
    dropout: float,
    hidden_features: int,
    width: float,
    column: Configuration,
    batch_norm: bool,
) -> nn.Sequential:
    layers: list[nn.Module] = []
    inputs = 3
    for channels, kernels in zip(_CHANNELS, _KERNELS[column], strict=True):
        outputs = scaled(channels, width)
        for kernel in kernels:
            norm = [nn.BatchNorm2d(outputs)] if batch_norm else []
            layers += [Convolution(inputs, outputs, kernel), *norm, nn.ReLU(inplace=True)]
            inputs = outputs
        layers.append(nn.MaxPool2d(2))
    layers.append(nn.Flatten())
    hidden = scaled(hidden_features, width)
    for features in (inputs * (image_size // 32) ** 2, hidden):
        layers += [nn.Linear(features, hidden), nn.ReLU(inplace=True), nn.Dropout(dropout)]
    return nn.Sequential(*layers, nn.Linear(hidden, num_classes))


def _pretrained_layers(network: nn.Module) -> Iterator[str]:
    """Yield the names of the layers that configuration A gives, with their batch normalization, in its order."""
    block = place = 0
    for name, layer in network.named_children():
        if isinstance(layer, nn.MaxPool2d):
            block, place = block + 1, 0
        place += isinstance(layer, nn.Conv2d | nn.Linear)
        if place <= _PRETRAINED[block] and [*layer.parameters()]:
            yield name


@final
class VGG(ImageClassifier):
    """VGG of Simonyan & Zisserman (2014), table 1: 3x3 convolutions in five blocks, each ended by max-pooling.

    Configuration D is VGG16. At 224x224 with 10 classes it has 134,301,514 parameters. The first fully-connected layer
    has 7x7 positions of a 224x224 image, one of a 32x32 image. Dropout follows the two hidden fully-connected layers
    (sec. 3.1).

    Args:
        num_classes: number of logits. The command line sets it from the data.
        image_size: height and width in pixels, a multiple of 32. The command line sets it from the data.
        configuration: column of table 1: A (11 weight layers), B (13), C (16, with 1x1 convolutions), D (16), E (19).
        batch_norm: batch normalization after every convolution (Ioffe & Szegedy 2015); not in the paper.
        dropout: probability in [0, 1) of dropping an output of the two hidden fully-connected layers.
        hidden_features: outputs of each of the two hidden fully-connected layers, before ``width``.
        width: multiplier in [0.125, 2] of every convolution's output channels and of ``hidden_features`` (Howard et al.
            2017, sec. 3.3). Each product is rounded, to at least 1.
        softmax: end the network in a softmax layer, although cross-entropy applies a softmax too. This mistake is kept
            to be shown: the loss stays above ln(1 + (num_classes - 1) / e), 1.46 for ten classes, and its gradient
            vanishes when the network is sure, right or wrong.
        init_from: folder of a run of configuration A, such as lightning_logs/vgg11/version_0. Its ``weights.pth`` gives
            the first four convolutions, their batch normalization and the three fully-connected layers. The others are
            drawn by ``initialization`` (sec. 3.1). Convolutions match by block and place in the block, because they do
            not fit by order alone: the second is 64->128 in A and 64->64 in D. Both networks must have batch
            normalization, or neither. A resumed run no longer needs the folder.
        initialization: draws the weights. With the paper's normal of variance 0.01, the first loss is about 10^7 at
            this depth. The default keeps the variance of the activations and starts near ln(num_classes).
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
        ValueError: if an argument is out of its range, or if configuration A has ``init_from``.
        ModelError: if a metric's name does not fit, or if it gives no single number of logits and labels.
    """

    def __init__(
        self,
        num_classes: int = 10,
        image_size: int = 32,
        configuration: Configuration = "D",
        batch_norm: bool = False,
        dropout: float = 0.5,
        hidden_features: int = 4096,
        width: float = 1.0,
        softmax: bool = False,
        init_from: str | os.PathLike[str] | None = None,
        initialization: Initialization = SmallOutput(He("fan_in")),
        optimizer: OptimizerCallable = partial(torch.optim.SGD, lr=0.01, momentum=0.9, weight_decay=5e-4),
        decay_biases: bool = True,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_scheduler_interval: Literal["epoch", "step"] | None = None,
        label_smoothing: float = 0.0,
        metrics: OwnMetrics | None = None,
    ) -> None:
        check_arguments("VGG", 5, image_size, dropout, hidden_features, width)
        if init_from is not None and configuration == "A":
            raise ValueError("init_from is for configurations B to E: it loads weights of a trained configuration A")
        layers = partial(_layers, num_classes, image_size, dropout, hidden_features, width)
        network = layers(configuration, batch_norm)
        initialization(network)
        if softmax:
            network.append(nn.Softmax(dim=1))
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
        self._batch_norm, self._softmax, self._init_from, self._layers = batch_norm, softmax, init_from, layers

    def probabilities(self, logits: Tensor) -> Tensor:
        """See the base class. A network that ends in a softmax outputs probabilities already."""
        return logits.float() if self._softmax else super().probabilities(logits)

    def pretrained(self) -> dict[str, Tensor]:
        """Return the weights that ``init_from`` gives.

        Raises:
            ModelError: if there are none, or if they are damaged or not of a configuration A with the same classes,
                image size, width and batch normalization.
        """
        if self._init_from is None:
            return {}
        folder = Path(self._init_from)
        path = RunFiles(folder).weights
        example = "give model.init_from the run of a trained configuration A, such as lightning_logs/vgg11/version_0"
        if not path.is_file():
            without = "has no weights.pth: it is no run, or one that has not ended, or had no validation"
            why = without if folder.is_dir() else "is no folder"
            raise ModelError(f"{folder} {why}; {example}")
        try:
            weights = load_saved(path)
        except RunError as error:
            raise ModelError(f"{path} is damaged, or would run code when loaded; {example}") from error
        theirs: dict[str, Tensor] = weights if isinstance(weights, dict) else {}
        with torch.device("meta"):
            expected, other = (self._layers("A", batch_norm) for batch_norm in (self._batch_norm, not self._batch_norm))
        if theirs.keys() == other.state_dict().keys():
            has, lacks = ("this network", folder) if self._batch_norm else (folder, "this network")
            raise ModelError(
                f"{has} has batch normalization and {lacks} does not; set --model.batch_norm to the same for both"
            )
        if theirs.keys() != expected.state_dict().keys():
            raise ModelError(
                f"the weights in {folder} are not of VGG's configuration A; train one, for instance by: "
                "python scripts/fit.py --config vgg11.yaml"
            )
        for name, value in expected.state_dict().items():
            if theirs[name].shape != value.shape:
                raise ModelError(
                    f"the configuration A in {folder} has other classes, another image size or another width: "
                    f"{name} is {tuple(theirs[name].shape)} there and must be {tuple(value.shape)} here; give both the "
                    "same data, --data.image_size, --model.width and --model.hidden_features"
                )
        return {
            f"{mine}.{parameter}": theirs[f"{name}.{parameter}"]
            for mine, name in zip(_pretrained_layers(self.network), _pretrained_layers(expected), strict=True)
            for parameter in expected.get_submodule(name).state_dict()
        }
