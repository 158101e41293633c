"""A small network that can have what makes a network not learn."""

from functools import partial
from itertools import pairwise
from typing import Literal, final

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from lightning_modules import ImageClassifier
from lightning_modules.initialization import He, Initialization, Normal


class Times(nn.Module):
    """Its input times a number."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, values: Tensor) -> Tensor:
        return values * self.factor


@final
class Small(ImageClassifier):
    """Fully-connected layers on 4x4 pixels; the defaults learn.

    Args:
        num_classes: number of outputs.
        image_size: height and width in pixels, a multiple of 4.
        layers: number of hidden layers.
        width: of each of them.
        weight_std: of all weights; none draws them by He's rule.
        bias: of the hidden layers.
        sigmoid: in place of ReLU.
        softmax: behind the last layer.
        factor: of the outputs.
        optimizer: from parameters to an optimizer.
        lr_scheduler: from the optimizer to a learning-rate schedule.
    """

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
        super().__init__(network, num_classes, image_size, optimizer, lr_scheduler, "epoch")


class ExportFault(nn.Module):
    """Passes its input on, but not if it is exported."""

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
    """One layer on 4x4 pixels whose exports are wrong.

    Args:
        num_classes: number of outputs.
        image_size: height and width in pixels, a multiple of 4.
        fault: what is wrong: the weights that are written, the network that torch exports, or that it has a branch.
        optimizer: from parameters to an optimizer.
    """

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
