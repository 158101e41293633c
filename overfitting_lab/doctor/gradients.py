"""Rules about the gradients' size, layer by layer, and a measurement of how far a step moves the weights."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from overfitting_lab.doctor.activations import SMALL_OUTPUT
from overfitting_lab.doctor.diagnosis import Diagnosis, Severity
from overfitting_lab.doctor.layers import weighted_layers

ROWS = 16  # outputs of a layer that are measured, or up to twice as many: all of them would take milliseconds
EXPLODING = 1e3  # ratio of a layer's gradient to its weights
VANISHING = 1e-6  # the layer with the smallest such ratio against the layer with the largest


@dataclass(frozen=True)
class Gradient:
    """One layer's gradient at one step."""

    name: str  # as in the network's named_modules
    kind: str  # name of the layer's class
    gradient: float  # root mean square of the weight's gradient, over some of the layer's outputs
    weight: float  # root mean square of the weight, over the same outputs

    @property
    def relative(self) -> float:
        """Ratio of the gradient to the weight; 0 if both are 0."""
        return self.gradient / max(self.weight, 1e-30)

    def __str__(self) -> str:
        return f"{self.name} ({self.kind})"


def measure(network: nn.Module, scale: float = 1.0) -> tuple[Gradient, ...]:
    """Measure all convolutions and linear layers that have a gradient, in the network's order.

    The gradients are divided by ``scale``, by which float16's are multiplied.
    """
    layers = {name: module for name, module in weighted_layers(network).items() if module.weight.grad is not None}
    if not layers:
        return ()
    tensors = [tensor for module in layers.values() for tensor in (module.weight.grad, module.weight)]
    sizes = torch.stack([_rows(tensor).square().mean().sqrt() for tensor in tensors]).reshape(-1, 2).tolist()
    kinds = (type(module).__name__ for module in layers.values())
    return tuple(
        Gradient(name, kind, gradient / scale, weight)
        for name, kind, (gradient, weight) in zip(layers, kinds, sizes, strict=True)
    )


def sample(network: nn.Module) -> dict[str, Tensor]:
    """Return a copy of some weights of each layer that is not frozen."""
    layers = {name: module for name, module in weighted_layers(network).items() if module.weight.requires_grad}
    return {name: _rows(module.weight).clone() for name, module in layers.items()}


def _rows(tensor: Tensor) -> Tensor:
    return tensor.detach()[:: max(1, len(tensor) // ROWS)].float()


def relative_changes(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> list[float]:
    """Return how far each layer's weights moved, as a fraction of their norm."""
    both = [(weight, after[name]) for name, weight in before.items() if name in after]
    changes = [(now - weight).norm() / weight.norm().clamp(min=1e-30) for weight, now in both]
    return torch.stack(changes).tolist() if changes else []


def diagnose(now: Sequence[Gradient], before: Sequence[Gradient]) -> Iterator[Diagnosis]:
    """Report what two measurements in a row show: a single one may be an exception."""
    if not now or not before:
        return
    wild = [layer.name for layer in before if not layer.relative < EXPLODING]
    exploding = [layer for layer in now if layer.name in wild and not layer.relative < EXPLODING]
    limit, limit_before = (VANISHING * max(layer.relative for layer in layers) for layers in (now, before))
    faint = [layer.name for layer in before if layer.relative <= limit_before]
    vanishing = [layer for layer in now if layer.name in faint and layer.relative <= limit] if limit else []
    if exploding:
        worst = max(exploding, key=lambda layer: layer.relative)
        yield Diagnosis(
            "gradients_explode",
            Severity.WARNING,
            "the gradients are far larger than the weights that they change",
            f"root mean square {worst.gradient:.2g} of the gradient, {worst.weight:.2g} of the weights in {worst}; "
            f"{len(exploding)} of {len(now)} layers, as in the measurement before",
            "--trainer.gradient_clip_val 1, or a smaller --model.optimizer.lr",
            layers=tuple(layer.name for layer in exploding),
        )
    elif vanishing:
        most = max(now, key=lambda layer: layer.relative)
        least = min(vanishing, key=lambda layer: layer.relative)
        yield Diagnosis(
            "gradients_vanish",
            Severity.WARNING,
            "hardly any gradient reaches some layers, so they do not learn",
            f"the ratio of gradient to weights is {least.relative:.1g} in {least} and {most.relative:.1g} in {most}; "
            f"{len(vanishing)} of {len(now)} layers, as in the measurement before",
            f"--model.batch_norm true, and ReLU in place of sigmoid or tanh; else {SMALL_OUTPUT}",
            layers=tuple(layer.name for layer in vanishing),
        )
