"""How large the gradients are, layer by layer, and how far a step moves the weights."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from doctor.diagnosis import Diagnosis, Severity
from doctor.layers import is_weighted

SAMPLE = 4096  # weights of a layer that the size of a step is taken from
EXPLODING = 1e3  # a gradient's norm against its weights'
VANISHING = 1e-6  # of the layer with the least against the one with the most


@dataclass(frozen=True)
class Gradient:
    """One layer at one step.

    Attributes:
        name: as in the network's ``named_modules``.
        kind: name of the layer's class.
        gradient: norm of the weight's gradient.
        weight: norm of the weight.
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
    """Norms of all convolutions and linear layers that have a gradient, in the network's order."""
    layers = [
        (name, module)
        for name, module in network.named_modules()
        if is_weighted(module) and module.weight.grad is not None
    ]
    if not layers:
        return ()
    weights = [module.weight.detach() for _, module in layers]
    gradients = [module.weight.grad for _, module in layers]
    norms = torch.stack(
        [torch.stack(torch._foreach_norm(tensors)).float() for tensors in (gradients, weights)]
    ).tolist()
    return tuple(
        Gradient(name, type(module).__name__, gradient, weight)
        for (name, module), gradient, weight in zip(layers, *norms, strict=True)
    )


def sample(network: nn.Module) -> dict[str, Tensor]:
    """A copy of some weights of each layer, spread evenly over it."""
    weights = {name: module.weight.detach() for name, module in network.named_modules() if is_weighted(module)}
    return {
        name: weight.flatten()[:: max(1, weight.numel() // SAMPLE)].float().clone() for name, weight in weights.items()
    }


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
            f"norm of the gradient {worst.gradient:.2g}, of the weights {worst.weight:.2g} in {worst}; the same at the "
            f"look before; {len(exploding)} of {len(now)} layers",
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
