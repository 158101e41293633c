"""Single images of runs, with captions: mistakes on test images, and training images that are hard to memorize."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from overfitting_lab.comparison.groups import NamedRun
from overfitting_lab.runs.figures import shortened

Kind = Literal["learned_last", "most_forgotten", "least_forgotten"]
ARRAYS = {  # in images.npz: places of the images, their pixels, and the number that a caption names
    "learned_last": ("train_shown", "train_pictures", "train_learned"),
    "most_forgotten": ("train_most_forgotten", "train_most_forgotten_pictures", "train_forgotten"),
    "least_forgotten": ("train_least_forgotten", "train_least_forgotten_pictures", "train_forgotten"),
}


class Captioned(NamedTuple):
    """An image, its caption, and a second line below it."""

    pixels: NDArray[np.uint8]  # [height, width, 3], RGB
    caption: str
    note: str


def mistakes(run: NamedRun) -> list[Captioned]:
    """Return the most confident mistakes on test images, as far as the run kept their pictures."""
    images, classes = run.run.images, run.summary.data.classes
    found: list[Captioned] = []
    if (probabilities := run.run.test_probabilities) is None:
        return found
    for place, pixels in zip(images.get("test_shown", ()), images.get("test_pictures", ()), strict=True):
        predicted, label = images["test_predictions"][place], images["test_labels"][place]
        caption = f"{classes[predicted]} {probabilities[place][predicted]:.1%}"
        found.append(Captioned(pixels, caption, f"is {classes[label]}"))
    return found


def training_images(run: NamedRun, kind: Kind) -> list[Captioned] | None:
    """Return the training images that were learned last, or forgotten most or least often; ``None`` if not kept.

    See ``callbacks.images``. The captions name the labels that the run trained on.
    """
    shown, pictures, numbers = ARRAYS[kind]
    images, summary = run.run.images, run.summary
    if shown not in images:
        return None
    return [
        Captioned(
            pixels,
            f"labelled {summary.data.classes[images['train_labels'][place]]}",
            _note(kind, int(images[numbers][place]), summary.epochs),
        )
        for place, pixels in zip(images[shown], images[pictures], strict=True)
    ]


def _note(kind: Kind, value: int, epochs: int) -> str:
    if kind != "learned_last":
        return f"forgotten {value} time{'s' * (value != 1)}"
    return "not learned" if value >= epochs else f"from epoch {value + 1}"


def gallery(pictures: Sequence[Captioned], title: str, columns: int = 8) -> Figure:
    """Draw images in rows, each with its caption and note below it. They are enlarged without smoothing."""
    rows = max(1, -(-len(pictures) // columns))
    figure = Figure(figsize=(1.25 * columns, 0.4 + 1.65 * rows), layout="constrained")
    figure.suptitle(shortened(title))
    places = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in places:
        axes.set_axis_off()
    for axes, picture in zip(places, pictures, strict=False):
        axes.imshow(picture.pixels, interpolation="nearest")
        text = f"{shortened(picture.caption, 22)}\n{shortened(picture.note, 22)}"
        axes.text(0.5, -0.03, text, transform=axes.transAxes, ha="center", va="top", fontsize="small")
    return figure
