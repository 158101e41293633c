"""The VGG networks."""

import os
from functools import partial
from pathlib import Path
from typing import Literal, final

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from lightning_modules.classifier import ImageClassifier
from lightning_modules.errors import ModelError
from lightning_modules.initialization import He, Initialization, SmallOutput
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

# Simonyan & Zisserman (2014, sec. 3.1): what a trained configuration A gives a deeper one, by block and place therein;
# behind block 5 stands the classifier.
_PRETRAINED = {(1, 1), (2, 1), (3, 1), (3, 2), (6, 1), (6, 2), (6, 3)}


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


def _layers(
    configuration: Configuration,
    batch_norm: bool,
    dropout: float,
    hidden_features: int,
    num_classes: int,
    image_size: int,
) -> nn.Sequential:
    return nn.Sequential(
        *_features(configuration, batch_norm),
        nn.Flatten(),
        nn.Linear(512 * (image_size // 32) ** 2, hidden_features),
        nn.ReLU(inplace=True),
        nn.Dropout(dropout),
        nn.Linear(hidden_features, hidden_features),
        nn.ReLU(inplace=True),
        nn.Dropout(dropout),
        nn.Linear(hidden_features, num_classes),
    )


def _names(network: nn.Module) -> dict[tuple[type[nn.Module], int, int], str]:
    """The name of each layer with weights, by its kind, its block and its place among the block's of its kind."""
    names: dict[tuple[type[nn.Module], int, int], str] = {}
    block = 1
    for name, layer in network.named_children():
        if isinstance(layer, nn.MaxPool2d):
            block += 1
        elif isinstance(layer, nn.Conv2d | nn.BatchNorm2d | nn.Linear):
            place = 1 + sum(key[:2] == (type(layer), block) for key in names)
            names[type(layer), block, place] = name
    return names


def _read_weights(folder: Path) -> dict[str, Tensor]:
    """The ``weights.pth`` of a run; empty where it holds something else.

    Raises:
        ModelError: if there is none, or a damaged one.
    """
    path = RunFiles(folder).weights
    example = "give model.init_from the run of a trained configuration A, as lightning_logs/vgg11/version_0"
    if not folder.is_dir():
        raise ModelError(f"{folder} is no folder; {example}")
    if not path.is_file():
        raise ModelError(f"{folder} has no weights.pth: it is no run, or one that has not ended; {example}")
    try:
        weights = load_saved(path)
    except RunError as error:
        raise ModelError(f"{path} is damaged, or would run code when loaded; {example}") from error
    return weights if isinstance(weights, dict) else {}


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
        softmax: end the network in a softmax layer, so that the cross-entropy takes a softmax of probabilities. This is
            a mistake, kept to be shown: the loss stays above ln(1 + (num_classes - 1) / e), 1.46 for ten classes, and
            its gradient vanishes wherever the network is sure, right or wrong.
        init_from: folder of a run of configuration A, as lightning_logs/vgg11/version_0, whose ``weights.pth`` gives
            the first four convolutions and the three fully-connected layers; the others are drawn by
            ``initialization`` (sec. 3.1). The convolutions are matched by block and place within the block, because
            by mere order they do not fit: the second of A is 64->128, that of D is 64->64. With batch normalization,
            which both must have then, the layers after those convolutions are taken too. Read when training begins;
            a run that goes on from a checkpoint needs the folder no more.
        initialization: how the weights are drawn. With the paper's normal of variance 0.01 the first loss is about
            10^7 at this depth; the default keeps the variance of the activations, and starts near ln(num_classes).
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
        softmax: bool = False,
        init_from: str | os.PathLike[str] | None = None,
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
        if init_from is not None and configuration == "A":
            raise ValueError("init_from is for configurations B to E: what it takes is of a trained configuration A")
        layers = partial(
            _layers,
            dropout=dropout,
            hidden_features=hidden_features,
            num_classes=num_classes,
            image_size=image_size,
        )
        network = layers(configuration, batch_norm)
        initialization(network)
        if softmax:
            network.append(nn.Softmax(dim=1))
        super().__init__(network, num_classes, image_size, optimizer, lr_scheduler, lr_scheduler_interval)
        self._batch_norm = batch_norm
        self._softmax = softmax
        self._init_from = init_from
        self._layers = layers

    def probabilities(self, logits: Tensor) -> Tensor:
        """See the base class; what a network that ends in a softmax gives are probabilities already."""
        return logits.float() if self._softmax else super().probabilities(logits)

    def pretrained(self) -> dict[str, Tensor]:
        """What ``init_from`` gives.

        Raises:
            ModelError: if there are no such weights, or those of another network than configuration A with the same
                classes, image size, width and batch normalization.
        """
        if self._init_from is None:
            return {}
        folder = Path(self._init_from)
        theirs = _read_weights(folder)
        with torch.device("meta"):
            plain, normalized = (self._layers("A", batch_norm) for batch_norm in (False, True))
        expected, other = (normalized, plain) if self._batch_norm else (plain, normalized)
        if theirs.keys() == other.state_dict().keys():
            has, lacks = ("this network", folder) if self._batch_norm else (folder, "this network")
            raise ModelError(
                f"{has} has batch normalization and {lacks} has not; set --model.batch_norm to the same for both"
            )
        if theirs.keys() != expected.state_dict().keys():
            raise ModelError(
                f"the weights in {folder} are not of VGG's configuration A; train one, for instance by: "
                "python scripts/fit.py --config vgg11.yaml"
            )
        for name, value in expected.state_dict().items():
            if theirs[name].shape != value.shape:
                raise ModelError(
                    f"the configuration A in {folder} is of other classes, another image size or another width: "
                    f"{name} is {tuple(theirs[name].shape)} there and must be {tuple(value.shape)} here; give both the "
                    "same data, --data.image_size and --model.hidden_features"
                )
        mine = _names(self.network)
        return {
            f"{mine[key]}.{parameter}": theirs[f"{name}.{parameter}"]
            for key, name in _names(expected).items()
            if key[1:] in _PRETRAINED
            for parameter in expected.get_submodule(name).state_dict()
        }
