"""How large the gradients are, layer by layer, and how far a step moves the weights."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from overfitting_lab.doctor.diagnosis import Diagnosis, Severity
from overfitting_lab.doctor.layers import is_weighted

ROWS = 16  # outputs of a layer that are looked at, or up to twice as many
EXPLODING = 1e3  # a gradient against its weights
VANISHING = 1e-6  # of the layer with the least against the one with the most


@dataclass(frozen=True)
class Gradient:
    """One layer at one step.

    Attributes:
        name: as in the network's ``named_modules``.
        kind: name of the layer's class.
        gradient: root mean square of the weight's gradient, over some of its outputs.
        weight: that of the weight.
    """

    name: str
    kind: str
    gradient: float
    weight: float

    @property
    def relative(self) -> float:
        """The gradient against the weight; 0 where both are."""
        return self.gradient / max(self.weight, 1e-30)

    def __str__(self) -> str:
        return f"{self.name} ({self.kind})"


def measure(network: nn.Module) -> tuple[Gradient, ...]:
    """Root mean squares over all convolutions and linear layers that have a gradient, in the network's order."""
    weighted = [(name, module) for name, module in network.named_modules() if is_weighted(module)]
    layers = [(name, module) for name, module in weighted if module.weight.grad is not None]
    if not layers:
        return ()
    tensors = [tensor for _, module in layers for tensor in (module.weight.grad, module.weight)]
    sizes = torch.stack([_rows(tensor).square().mean().sqrt() for tensor in tensors]).reshape(-1, 2).tolist()
    return tuple(
        Gradient(name, type(module).__name__, *size) for (name, module), size in zip(layers, sizes, strict=True)
    )


def sample(network: nn.Module) -> dict[str, Tensor]:
    """A copy of some weights of each layer."""
    return {name: _rows(module.weight).clone() for name, module in network.named_modules() if is_weighted(module)}


def _rows(tensor: Tensor) -> Tensor:
    """Some outputs' part of a weight or its gradient, evenly spread; all of it would take milliseconds."""
    return tensor.detach()[:: max(1, len(tensor) // ROWS)].float()


def relative_changes(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> list[float]:
    """How far the weights of each layer have moved, against their own norm."""
    changes = [(after[name] - weight).norm() / weight.norm().clamp(min=1e-30) for name, weight in before.items()]
    return torch.stack(changes).tolist() if changes else []


def diagnose(now: Sequence[Gradient], before: Sequence[Gradient], step: int) -> Iterator[Diagnosis]:
    """What the gradients at two looks, one after the other, show; the first look may be an exception."""
    if not now or not before:
        return
    wild = [layer.name for layer in before if not layer.relative < EXPLODING]
    exploding = [layer for layer in now if layer.name in wild and not layer.relative < EXPLODING]
    if exploding:
        worst = max(exploding, key=lambda layer: layer.relative)
        yield Diagnosis(
            "gradients_explode",
            Severity.WARNING,
            "the gradients are far larger than the weights that they are to change",
            f"root mean square {worst.gradient:.2g} of the gradient, {worst.weight:.2g} of the weights in {worst}; "
            f"{len(exploding)} of {len(now)} layers, the same at the look before",
            "--trainer.gradient_clip_val 1, or a smaller --model.optimizer.lr",
            layers=tuple(layer.name for layer in exploding),
            step=step,
        )
        return
    limit, limit_before = (VANISHING * max(layer.relative for layer in look) for look in (now, before))
    faint = [layer.name for layer in before if layer.relative <= limit_before]
    vanishing = [layer for layer in now if layer.name in faint and layer.relative <= limit]
    if vanishing:
        most = max(now, key=lambda layer: layer.relative)
        least = min(vanishing, key=lambda layer: layer.relative)
        yield Diagnosis(
            "gradients_vanish",
            Severity.WARNING,
            "hardly any gradient comes to some layers, so that they do not learn",
            f"gradient against weights {least.relative:.1g} in {least} and {most.relative:.1g} in {most}; "
            f"{len(vanishing)} of {len(now)} layers, the same at the look before",
            "--model.batch_norm true for a VGG, and ReLU in place of sigmoid or tanh; else "
            "--model.initialization lightning_modules.initialization.SmallOutput",
            layers=tuple(layer.name for layer in vanishing),
            step=step,
        )
