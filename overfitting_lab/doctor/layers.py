"""Measure what leaves each layer of a network for one batch, without changing the network or any random generator."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

RECTIFIERS = (nn.ReLU, nn.ReLU6)


@dataclass(frozen=True)
class Layer:
    """One layer's output for one batch."""

    name: str  # as in the network's named_modules
    kind: str  # name of the layer's class
    shape: tuple[int, ...]  # of the output for one image
    weighted: bool  # whether the layer is a convolution or a linear layer
    size: float  # root mean square of the output
    spread: float  # root mean square of the elements' standard deviation over images: how far the image still matters
    finite: bool  # whether every element is finite
    dead: float | None  # share of the channels that are 0 for every image and at every position; None if it is no ReLU

    def __str__(self) -> str:
        return f"{self.name} ({self.kind})"


@dataclass(frozen=True)
class Measurement:
    """All layers' outputs for one batch, in the order in which the layers ran."""

    input: Layer  # the batch itself, as a layer named input
    layers: tuple[Layer, ...]  # the modules without children, each once
    logits: Tensor  # float32 [N, classes]

    @property
    def weighted(self) -> tuple[Layer, ...]:
        """The convolutions and linear layers."""
        return tuple(layer for layer in self.layers if layer.weighted)

    @property
    def first_not_finite(self) -> Layer | None:
        """The first layer, the input included, whose output is not finite."""
        return next((layer for layer in (self.input, *self.layers) if not layer.finite), None)


def weighted_layers(network: nn.Module) -> dict[str, Any]:
    """Return the convolutions and linear layers by name, in the network's order: each has a weight of 2-D or more."""
    weights = ((name, module, getattr(module, "weight", None)) for name, module in network.named_modules())
    return {name: module for name, module, weight in weights if isinstance(weight, Tensor) and weight.dim() >= 2}


def measure_layers(
    network: nn.Module, images: Tensor, context: AbstractContextManager[Any] | None = None
) -> Measurement:
    """Measure each layer's output for a batch.

    Dropout is off. Batch normalization uses the batch's own statistics, as in training, and keeps its running ones.
    The network, any module that maps images to logits [N, classes], runs without its compiled form and is left
    unchanged. ``images`` are float [N, 3, H, W], N at least 1. ``context`` is of the forward pass: mixed precision.
    """
    found: list[tuple[str, nn.Module, tuple[int, ...], Tensor]] = []

    def record(name: str, module: nn.Module, _: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.is_floating_point() and all(name != seen[0] for seen in found[1:]):
            # At once, because an in-place ReLU changes the output next.
            found.append((name, module, tuple(output.shape[1:]), _statistics(module, output)))

    record("input", nn.Identity(), (), images)
    leaves = {name: module for name, module in network.named_modules() if not any(module.children())}
    handles = [module.register_forward_hook(partial(record, name)) for name, module in leaves.items()]
    try:
        with torch.no_grad(), _as_in_training(network, len(images)), context or nullcontext():
            logits = network.forward(images).float()
    finally:
        for handle in handles:
            handle.remove()
    numbers = torch.stack([statistics for *_, statistics in found]).tolist()  # one wait for a GPU
    weighted, layers = weighted_layers(network), []
    for (name, module, shape, _), (size, spread, finite, dead) in zip(found, numbers, strict=True):
        share, is_weighted = dead if isinstance(module, RECTIFIERS) else None, name in weighted
        layers.append(Layer(name, type(module).__name__, shape, is_weighted, size, spread, bool(finite), share))
    return Measurement(layers[0], tuple(layers[1:]), logits)


def _statistics(module: nn.Module, output: Tensor) -> Tensor:
    """Return size, spread, finiteness and share of dead channels: float32 [4]."""
    values = output.detach().float()
    deviation = values - values.mean(dim=0) if len(values) > 1 else values
    size, spread = (each.square().mean().sqrt() for each in (values, deviation))
    dead = values.new_zeros(())
    if isinstance(module, RECTIFIERS):
        dead = 1 - (values.amax(dim=[0, *range(2, values.dim())]) > 0).float().mean()
    return torch.stack([size, spread, values.isfinite().all().float(), dead])


@contextmanager
def _as_in_training(network: nn.Module, images: int) -> Iterator[None]:
    """Turn dropout off and batch normalization on, and restore modes and buffers at the end."""
    modes = {module: module.training for module in network.modules()}
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    for module, mode in modes.items():  # batch normalization refuses a single image
        normalizes = isinstance(module, nn.modules.batchnorm._BatchNorm) and not isinstance(module, nn.SyncBatchNorm)
        module.training = mode and normalizes and images > 1
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        with torch.no_grad():
            for name, buffer in network.named_buffers():
                buffer.copy_(buffers[name])
