"""Rules about the layers' outputs: softmax, exploding, vanishing, dead ReLUs, NaN and infinity."""

import math
from collections.abc import Iterator, Sequence

from overfitting_lab.doctor.diagnosis import Diagnosis, Severity
from overfitting_lab.doctor.layers import Layer, Measurement

# Ratios of a layer's output to the input. docs/doctor.md has the measurements.
LARGE, HUGE = 1e2, 1e4
FAINT, GONE = 1e-3, 1e-6
DEAD = 0.95  # share of a layer's channels
FEW = 8  # with fewer images, a healthy channel may be 0 for all of them

SMALL_OUTPUT = "--model.initialization lightning_modules.initialization.SmallOutput"
INITIALIZATION = f"{SMALL_OUTPUT}; in a network of your own, He's rule (lightning_modules.initialization.He)"
SMALLER_STEPS = "a smaller --model.optimizer.lr, or --trainer.precision 32-true"


def diagnose(measured: Measurement) -> Iterator[Diagnosis]:
    """Report all that the layers' outputs for one batch show before the first step."""
    yield from softmax_before_cross_entropy(measured)
    if not measured.input.finite:
        yield not_finite("the first batch", measured.input)
        return
    yield from activations_explode(measured)
    yield from activations_vanish(measured)
    yield from dead_relus(measured)


def softmax_before_cross_entropy(measured: Measurement) -> Iterator[Diagnosis]:
    """Report outputs that are probabilities: none is below 0, and each image's outputs sum to 1."""
    images, classes = measured.logits.shape
    furthest = float((measured.logits.sum(dim=1) - 1).abs().max())
    if measured.logits.min() < 0 or not furthest < 1e-2:  # bf16 has 8 bits
        return
    least = math.log(math.e + classes - 1) - 1
    last = measured.layers[-1]
    yield Diagnosis(
        "softmax_before_cross_entropy",
        Severity.FATAL,
        "the network's outputs are probabilities, and cross-entropy applies a second softmax to them",
        f"the outputs of {last} are at least 0 and sum to 1 for each of {images} images (to {furthest:.1g}); the "
        f"loss cannot fall below {least:.3f}, and its gradients are small",
        f"--model.softmax false; in a network of your own, remove {last}: the loss and predict_step apply the softmax",
        layers=(last.name,),
    )


def activations_explode(measured: Measurement) -> Iterator[Diagnosis]:
    """Report outputs that grow from layer to layer."""
    layers, size = measured.weighted, measured.input.size
    large = [layer for layer in layers if not layer.size <= LARGE * size]
    if not large or not size:  # an input of zeros says nothing
        return
    first, last = large[0], layers[-1]
    growth = (last.size / size) ** (1 / len(layers)) if last.finite else float("inf")
    yield Diagnosis(
        "activations_explode",
        Severity.FATAL if any(not layer.size <= HUGE * size for layer in layers) else Severity.WARNING,
        "the initial weights are so large that the signal grows layer by layer",
        f"root mean square {size:.2g} of the input, {first.size:.2g} after {first}, {last.size:.2g} after "
        f"{last}: {growth:.1f} times a layer over {len(layers)} layers",
        INITIALIZATION,
        layers=tuple(layer.name for layer in large),
    )


def activations_vanish(measured: Measurement) -> Iterator[Diagnosis]:
    """Report hidden outputs that hardly depend on the image. The last layer may be small on purpose."""
    layers, spread = measured.weighted[:-1], measured.input.spread
    faint = [layer for layer in layers if layer.finite and layer.spread < FAINT * spread]
    if not faint:
        return
    first, last = faint[0], layers[-1]
    shrinkage = (last.spread / spread) ** (1 / len(layers))
    yield Diagnosis(
        "activations_vanish",
        Severity.FATAL if last.spread < GONE * spread else Severity.WARNING,
        "the initial weights are so small that the image is lost on its way through the layers",
        f"from image to image the input varies by {spread:.2g}, {first} by {first.spread:.1g} and {last} by "
        f"{last.spread:.1g}: {shrinkage:.2g} times a layer over {len(layers)} layers",
        INITIALIZATION,
        layers=tuple(layer.name for layer in faint),
    )


def without_output(measured: Measurement) -> tuple[str, ...]:
    """Return the layers whose ReLUs are all 0 for every image."""
    return tuple(layer.name for layer in measured.layers if layer.dead == 1 and layer.finite)


def dead_relus(measured: Measurement, step: int = 0, before: Sequence[str] = ()) -> Iterator[Diagnosis]:
    """Report ReLUs with channels that are 0 for every image: no gradient passes through them.

    Once the network trains, a layer may be 0 for the images of one step alone. It is fatal if it was among the layers
    ``before``, of the probe before, as well.
    """
    dead = [layer for layer in measured.layers if layer.dead is not None and layer.dead >= DEAD and layer.finite]
    if not dead or len(measured.logits) < FEW:
        return
    yield Diagnosis(
        "dead_relus",
        Severity.FATAL if any(step == 0 or name in before for name in without_output(measured)) else Severity.WARNING,
        "ReLUs output 0 for every image, and no gradient passes through them",
        "dead channels: " + ", ".join(f"{layer.dead:.0%} of {layer}" for layer in dead),
        "a smaller --model.optimizer.lr, or " * (step > 0) + INITIALIZATION,
        layers=tuple(layer.name for layer in dead),
    )


def not_finite(where: str, layer: Layer | None = None, weights: tuple[str, ...] = ()) -> Diagnosis:
    """Return the diagnosis of NaN or infinity in ``weights`` of layers, or else first in the output of ``layer``."""
    what, remedy, layers = "the loss is NaN or infinite", SMALLER_STEPS, weights
    evidence = "every layer's output is finite, but the loss is not"
    if weights:
        evidence = f"the weights of {len(weights)} layers are NaN or infinite, {weights[0]} first"
    elif layer:
        evidence, layers = f"{layer} is the first with NaN or infinity", (layer.name,)
        if layer.name == "input":
            what = "the images contain NaN or infinity"
            remedy = "--data.std with three numbers above 0, and look at the images in TensorBoard"
    return Diagnosis("not_finite", Severity.FATAL, what, f"in {where}, {evidence}", remedy, layers)
