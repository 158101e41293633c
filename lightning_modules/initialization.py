"""Draw a network's weights before training. Biases are always 0."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn


class Initialization(ABC):
    """Draw the weights of every convolution and linear layer of a network, in place."""

    @abstractmethod
    def draw(self, weight: Tensor) -> None:
        """Draw the weights of one layer, float [out, in] or [out, in, height, width], in place."""

    def __call__(self, network: nn.Module) -> None:
        """Initialize every convolution and linear layer of the network in place; normalization layers keep 1 and 0."""
        for layer in network.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                self.draw(layer.weight)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)


@dataclass(frozen=True)
class He(Initialization):
    """Normal with variance 2 / fan, the gain of a ReLU (He et al. 2015, sec. 2.2)."""

    # fan_in keeps the variance of the activations from layer to layer, fan_out the variance of the gradients.
    fan: Literal["fan_in", "fan_out"] = "fan_in"

    def draw(self, weight: Tensor) -> None:
        """See the base class."""
        nn.init.kaiming_normal_(weight, mode=self.fan, nonlinearity="relu")


@dataclass(frozen=True)
class Glorot(Initialization):
    """Uniform with variance 2 / (fan-in + fan-out) (Glorot & Bengio 2010, eq. 16)."""

    def draw(self, weight: Tensor) -> None:
        """See the base class."""
        nn.init.xavier_uniform_(weight)


@dataclass(frozen=True)
class Normal(Initialization):
    """Normal with one standard deviation for all layers (Simonyan & Zisserman 2014, sec. 3.1)."""

    std: float = 0.1  # the paper's, which names the variance, 10^-2

    def draw(self, weight: Tensor) -> None:
        """See the base class."""
        nn.init.normal_(weight, std=self.std)


@dataclass(frozen=True)
class SmallOutput(Initialization):
    """One initialization for all layers but the last, whose small weights put the first loss near ln(classes).

    With He's rule for the last layer, a deep network's first logits are far from 0, and its first steps only undo that.
    """

    hidden: Initialization = He()  # draws every layer but the last
    std: float = 0.01  # of the last layer's weights

    def draw(self, weight: Tensor) -> None:
        """See the base class."""
        self.hidden.draw(weight)

    def __call__(self, network: nn.Module) -> None:
        """Initialize the network in place."""
        super().__call__(network)
        *_, output = (layer for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.Linear))
        nn.init.normal_(output.weight, std=self.std)
