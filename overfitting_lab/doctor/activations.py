"""What leaves a network's layers: softmax, exploding, vanishing, dead ReLUs, no numbers."""

from collections.abc import Iterator

import torch

from overfitting_lab.doctor.diagnosis import Diagnosis, Severity
from overfitting_lab.doctor.layers import Layer, Look

# Of a layer's output against the input's. Measured: docs/doctor.md.
LARGE, HUGE = 1e2, 1e4
FAINT, GONE = 1e-3, 1e-6
DEAD = 0.95  # share of a layer's channels
FEW = 8  # images, below which a channel may well be 0 for all of them

INITIALIZATION = (
    "--model.initialization lightning_modules.initialization.SmallOutput; in a network of your own, He's rule "
    "(lightning_modules.initialization.He)"
)


def diagnose(look: Look, step: int = 0) -> Iterator[Diagnosis]:
    """All that the layers' outputs for one batch show at the start."""
    yield from softmax_before_cross_entropy(look)
    if not look.input.finite:
        yield not_finite(look.input, step, "the first batch")
        return
    yield from activations_explode(look)
    yield from activations_vanish(look)
    yield from dead_relus(look, step)


def softmax_before_cross_entropy(look: Look) -> Iterator[Diagnosis]:
    """Outputs that are probabilities: none below 0, and 1 in all for each image."""
    logits = look.logits
    classes = logits.shape[1]
    furthest = float((logits.sum(dim=1) - 1).abs().max())
    if logits.min() < 0 or not furthest < 1e-2:  # bf16 has 8 bits
        return
    least = float(torch.log(torch.tensor(2.718281828 + classes - 1))) - 1
    last = look.layers[-1]
    yield Diagnosis(
        "softmax_before_cross_entropy",
        Severity.FATAL,
        "the network gives probabilities, and cross-entropy takes the softmax of them once more",
        f"the outputs of {last} are at least 0 and sum to 1 for each of {len(logits)} images (to {furthest:.1g}); the "
        f"loss cannot fall below {least:.3f}, and its gradients are small",
        f"--model.softmax false; in a network of your own, take {last} out: the loss applies it, and so does "
        "predict_step",
        layers=(last.name,),
    )


def activations_explode(look: Look) -> Iterator[Diagnosis]:
    """Outputs that grow from layer to layer."""
    layers = look.weighted
    limit = LARGE * look.input.size
    beyond = [layer for layer in layers if not layer.size <= limit]
    if not beyond:
        return
    first, last = beyond[0], layers[-1]
    fatal = any(not layer.size <= HUGE * look.input.size for layer in layers)
    growth = (last.size / look.input.size) ** (1 / len(layers)) if last.finite else float("inf")
    yield Diagnosis(
        "activations_explode",
        Severity.FATAL if fatal else Severity.WARNING,
        "the weights are drawn so large that the signal grows from layer to layer",
        f"root mean square {look.input.size:.2g} of the input, {first.size:.2g} after {first}, {last.size:.2g} after "
        f"{last}: {growth:.1f} times a layer over {len(layers)} layers",
        INITIALIZATION,
        layers=tuple(layer.name for layer in beyond),
    )


def activations_vanish(look: Look) -> Iterator[Diagnosis]:
    """Outputs that tell less and less of the image; the last layer may be drawn small on purpose."""
    layers = look.weighted[:-1]
    faint = [layer for layer in layers if layer.finite and layer.spread < FAINT * look.input.spread]
    if not faint or not look.input.spread:
        return
    first, last = faint[0], layers[-1]
    shrinkage = (last.spread / look.input.spread) ** (1 / len(layers))
    yield Diagnosis(
        "activations_vanish",
        Severity.FATAL if last.spread < GONE * look.input.spread else Severity.WARNING,
        "the weights are drawn so small that the image is lost on its way through the layers",
        f"from image to image the input varies by {look.input.spread:.2g}, {first} by {first.spread:.1g} and "
        f"{last} by {last.spread:.1g}: {shrinkage:.2g} times a layer over {len(layers)} layers",
        INITIALIZATION,
        layers=tuple(layer.name for layer in faint),
    )


def dead_relus(look: Look, step: int) -> Iterator[Diagnosis]:
    """ReLUs whose channels are 0 for every image: no gradient goes through them."""
    dead = [layer for layer in look.layers if layer.dead is not None and layer.dead >= DEAD and layer.finite]
    if not dead or len(look.logits) < FEW:
        return
    whole = any(layer.dead == 1 for layer in dead)
    yield Diagnosis(
        "dead_relus",
        Severity.FATAL if whole else Severity.WARNING,
        "ReLUs give 0 for every image, and no gradient goes through them",
        "dead channels: " + ", ".join(f"{layer.dead:.0%} of {layer}" for layer in dead),
        "a smaller --model.optimizer.lr, or " + INITIALIZATION if step else INITIALIZATION,
        layers=tuple(layer.name for layer in dead),
        step=step,
    )


def weights_not_finite(names: tuple[str, ...], step: int, where: str) -> Diagnosis:
    """Weights that are no finite numbers any more: the gradients of a step before were none."""
    return Diagnosis(
        "not_finite",
        Severity.FATAL,
        "the loss is no finite number",
        f"in {where}, the weights of {len(names)} layers are infinite or NaN, {names[0]} first"
        if names
        else f"in {where}, every layer gives finite numbers, but the loss is none",
        "a smaller --model.optimizer.lr, or --trainer.precision 32-true",
        layers=names,
        step=step,
    )


def not_finite(layer: Layer, step: int, where: str) -> Diagnosis:
    """Numbers that are none, and the first layer that gives them."""
    data = layer.name == "input"
    return Diagnosis(
        "not_finite",
        Severity.FATAL,
        "the images are no finite numbers" if data else "the loss is no finite number",
        f"in {where}, {layer} is the first that gives infinity or NaN",
        "--data.std with three numbers above 0, and look at the images in TensorBoard"
        if data
        else "a smaller --model.optimizer.lr, or --trainer.precision 32-true",
        layers=(layer.name,),
        step=step,
    )
