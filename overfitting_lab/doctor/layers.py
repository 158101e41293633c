"""What leaves each layer of a network for one batch: measured without changing the network or any generator."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

RECTIFIERS = (nn.ReLU, nn.ReLU6)


@dataclass(frozen=True)
class Layer:
    """What one layer gives for one batch.

    Attributes:
        name: as in the network's ``named_modules``.
        kind: name of the layer's class.
        shape: of the output for one image.
        weighted: whether it has a weight of two dimensions or more: a convolution or a linear layer.
        size: root mean square of the output.
        spread: root mean square, over the output's elements, of the standard deviation over the images: what the layer
            still tells of the image.
        finite: whether every element is a finite number.
        dead: share of the channels that are 0 for every image and at every position; none where it is no ReLU.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    weighted: bool
    size: float
    spread: float
    finite: bool
    dead: float | None

    def __str__(self) -> str:
        return f"{self.name} ({self.kind})"


@dataclass(frozen=True)
class Look:
    """A network's layers, in the order in which they ran, for one batch.

    Attributes:
        input: the batch itself, as a layer named ``input``.
        layers: those with neither children nor a name seen before.
        logits: float32 [N, classes].
    """

    input: Layer
    layers: tuple[Layer, ...]
    logits: Tensor

    @property
    def weighted(self) -> tuple[Layer, ...]:
        """The convolutions and linear layers."""
        return tuple(layer for layer in self.layers if layer.weighted)

    @property
    def first_not_finite(self) -> Layer | None:
        """The first layer, the input included, that gives something else than finite numbers."""
        return next((layer for layer in (self.input, *self.layers) if not layer.finite), None)


def is_weighted(module: nn.Module) -> bool:
    """Whether a module is a convolution or a linear layer: has a weight of two dimensions or more."""
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.dim() >= 2


def look(network: nn.Module, images: Tensor, context: AbstractContextManager[Any] | None = None) -> Look:
    """What each layer of the network gives for a batch.

    Dropout is off; batch normalization takes the batch's own statistics, as in training, and keeps its running ones.
    The network is called without a compiled form, and is afterwards what it was before.

    Args:
        network: any module that maps images to logits [N, classes].
        images: float [N, 3, H, W], N at least 1.
        context: of the forward pass, as for mixed precision.
    """
    measured: dict[str, tuple[nn.Module, tuple[int, ...], Tensor]] = {}

    def hook(name: str) -> Any:
        def measure(module: nn.Module, _: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.is_floating_point() and name not in measured:
                # At once, because a ReLU that works in place changes it next.
                measured[name] = (module, tuple(output.shape[1:]), _numbers(module, output))

        return measure

    leaves = {name: module for name, module in network.named_modules() if not any(module.children())}
    handles = [module.register_forward_hook(hook(name)) for name, module in leaves.items()]
    try:
        with torch.no_grad(), _as_in_training(network, len(images)), context or nullcontext():
            logits = network.forward(images).float()
    finally:
        for handle in handles:
            handle.remove()
    start = ("input", (nn.Identity(), tuple(images.shape[1:]), _numbers(nn.Identity(), images)))
    numbers = torch.stack([number for _, (_, _, number) in (start, *measured.items())]).tolist()  # one wait for a GPU
    first, *layers = (
        Layer(
            name=name,
            kind=type(module).__name__,
            shape=shape,
            weighted=is_weighted(module),
            size=size,
            spread=spread,
            finite=bool(finite),
            dead=dead if isinstance(module, RECTIFIERS) else None,
        )
        for (name, (module, shape, _)), (size, spread, finite, dead) in zip(
            (start, *measured.items()), numbers, strict=True
        )
    )
    return Look(first, tuple(layers), logits)


def _numbers(module: nn.Module, output: Tensor) -> Tensor:
    """Size, spread, whether finite, and share of dead channels: float32 [4]."""
    values = output.detach().float()
    if isinstance(module, RECTIFIERS):
        alive = values.amax(dim=[0, *range(2, values.dim())]) > 0
        dead = 1 - alive.float().mean()
    else:
        dead = values.new_zeros(())
    deviation = values - values.mean(dim=0) if len(values) > 1 else values
    size, spread = (each.square().mean().sqrt() for each in (values, deviation))
    return torch.stack([size, spread, values.isfinite().all().float(), dead])


@contextmanager
def _as_in_training(network: nn.Module, images: int) -> Iterator[None]:
    """Dropout off, batch normalization on, and all as it was at the end."""
    modes = {module: module.training for module in network.modules()}
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    network.eval()
    if images > 1:  # batch normalization refuses a single image
        for module in network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and not isinstance(module, nn.SyncBatchNorm):
                module.train(modes[module])
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        with torch.no_grad():
            for name, buffer in network.named_buffers():
                buffer.copy_(buffers[name])
