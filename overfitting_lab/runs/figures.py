"""Figures of one run. Each function returns a matplotlib Figure that belongs to no window and no global state."""

import logging
import warnings
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import IO, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, fontManager, get_font
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from PIL import Image

from overfitting_lab.runs.epochs import EpochMetrics, has_probe, own_of, value_of
from overfitting_lab.runs.files import replace_file
from overfitting_lab.runs.text import escaped

# Colour-blind readers can distinguish them (Okabe & Ito 2008). Here and in reports, training images are dashed.
TRAINING, PROBE, VALIDATION = "#0072B2", "#56B4E9", "#D55E00"
NOISE = {  # of the probe's images, by metric: label and colour
    "probe_clean_acc": ("images with their true label", "#009E73"),
    "probe_memorized_acc": ("drawn labels: memorized", "#CC79A7"),
    "probe_true_acc": ("drawn labels: true class predicted", "#E69F00"),
}
POINTS: dict[str, Any] = {"marker": "o", "markersize": 3}
Curve = tuple[NDArray[np.float64], NDArray[np.float64]]  # x and y, of equal length
LONGEST_SIDE = 20.0  # inches; 33 classes and more share it
LEGIBLE = 4.0  # points; names that would be smaller are left out


def plain_text(figure: Figure) -> Figure:
    """Make a figure show every text as it is, with its dollar signs and without LaTeX, and return the figure.

    A text in a script that its font lacks gets other fonts of this machine.
    """
    for text in figure.findobj(Text):
        text.set_parse_math(False)
        text.set_usetex(False)
        text.set_fontfamily([*text.get_fontfamily(), *_other_fonts(text)])
    return figure


def _other_fonts(text: Text) -> Iterator[str]:
    """Yield installed fonts that together have the characters which a text's font lacks, as far as there are any."""
    missing = {ord(letter) for letter in text.get_text() if letter.isprintable()}
    missing -= _characters(findfont(text.get_fontproperties()))
    for font in fontManager.ttflist if missing else ():
        if not font.name.startswith("Last Resort") and missing & _characters(font.fname):  # it draws boxes
            missing -= _characters(font.fname)
            logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)  # this font may lack a weight
            yield font.name


@cache
def _characters(font: str) -> frozenset[int]:
    """Return the characters that a font file has; none if matplotlib cannot read it."""
    try:
        return frozenset(get_font(font).get_charmap())
    except (OSError, RuntimeError):
        return frozenset()


def write_figure(figure: Figure, file: Path | IO[Any], **settings: Any) -> None:
    """Write a figure in plain text, silently if no font has a character; ``settings`` go to ``savefig``."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        plain_text(figure).savefig(file, **settings)


def save_figure(path: Path, figure: Figure) -> None:
    """Replace a PNG by a figure."""
    replace_file(path, lambda new: write_figure(figure, new, dpi=120, format="png"))


def reduce_colours(png: Path | IO[bytes], smaller: Path | IO[bytes]) -> None:
    """Write a PNG again with at most 256 colours. A chart looks the same, and takes less than half the bytes."""
    Image.open(png).convert("RGB").quantize(256).save(smaller, format="png", optimize=True)


def metric_curve(epochs: Sequence[EpochMetrics], metric: str) -> Curve:
    """Return one metric over the epochs that have it, the first epoch at 1.

    The metric is an attribute of :class:`EpochMetrics`, or one of its own metrics, such as ``val_f1``. A loss is in
    nats, an accuracy or a gap in per cent, an own metric as it is.
    """
    points = [(each.epoch + 1, value) for each in epochs if (value := value_of(each, metric)) is not None]
    x, y = np.array(points, dtype=float).reshape(-1, 2).T
    plain = metric.endswith("loss") or any(metric in each.own for each in epochs)
    return x, y if plain else 100 * y


def draw_metric(axes: Axes, epochs: Sequence[EpochMetrics], metric: str, **style: Any) -> None:
    """Draw one metric, see :func:`metric_curve`; ``style`` goes to matplotlib's ``plot``."""
    axes.plot(*metric_curve(epochs, metric), **style)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)


def usual_losses(epochs: Sequence[EpochMetrics]) -> list[float]:
    """Return the finite losses except the first training loss, which initial weights may lift far above the others."""
    losses = [each.train_loss for each in epochs[1:]] + [each.val_loss for each in epochs]
    return [loss for loss in losses if loss is not None and np.isfinite(loss)]


def curves(epochs: Sequence[EpochMetrics], title: str) -> Figure:
    """Draw loss, accuracy and own metrics of a run over its epochs, the first at 1.

    Training, probe and validation are in the same axes. Training and probe are dashed, validation is solid.
    """
    noisy, own = any(each.probe_clean_acc is not None for each in epochs), own_of(epochs)
    charts = 2 + noisy + len(own)
    figure = Figure(figsize=(5.5 * charts, 4.2), layout="constrained")
    figure.suptitle(shortened(title, 100))
    loss, accuracy, *others = figure.subplots(1, charts)
    if noisy:
        draw_noise(others.pop(0), epochs)
    validated = any(each.val_loss is not None for each in epochs)
    for axes, metric in ((loss, "loss"), (accuracy, "acc"), *zip(others, own, strict=True)):
        draw_metric(axes, epochs, f"train_{metric}", color=TRAINING, linestyle="--", label="training", **POINTS)
        if has_probe(epochs):
            evaluated = {"color": PROBE, "linestyle": "--", "label": "training images, evaluated"}
            draw_metric(axes, epochs, f"probe_{metric}", **evaluated, **POINTS)
        if validated:
            draw_metric(axes, epochs, f"val_{metric}", color=VALIDATION, label="validation", **POINTS)
    for axes, metric in zip(others, own, strict=True):
        axes.set(ylabel=metric)
        axes.legend(loc="best")
    loss.set(ylabel="cross-entropy (nats)", ylim=(0, None))
    loss.legend(loc="best")
    usual = usual_losses(epochs)
    if usual and epochs[0].train_loss > 1.5 * max(usual):
        loss.set_ylim(top=1.1 * max(usual))
        hidden = f"training loss of the first epoch, {epochs[0].train_loss:.1f}, not shown"
        loss.set_title(hidden, fontsize="small", loc="left")
    accuracy.set(ylabel="accuracy (%)", ylim=(0, 100))
    accuracy.legend(loc="best")
    return figure


def draw_noise(axes: Axes, epochs: Sequence[EpochMetrics]) -> None:
    """Draw the accuracies on the probe's images with their true label, and on its images with a drawn label."""
    for metric, (label, colour) in NOISE.items():
        draw_metric(axes, epochs, metric, color=colour, label=label, **POINTS)
    axes.set(ylabel="accuracy on training images (%)", ylim=(0, 100))
    axes.legend(loc="center right", fontsize="small")


def confusion_matrix(counts: NDArray[Any], classes: Sequence[str], title: str) -> Figure:
    """Draw how often the network predicted each class (column) for each true class (row), in per cent of the row.

    Args:
        counts: integers [classes, classes].
        classes: names of the classes.
        title: names the images that were counted.
    """
    shares = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = min(max(5.0, 1.5 + 0.55 * len(classes)), LONGEST_SIDE)
    size = min(10.0, 50 * side / len(classes))  # points, of a name
    names = [shortened(name, 40) for name in classes] if size >= LEGIBLE else []
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", fontsize=size)
    axes.set_yticks(range(len(names)), names, fontsize=size)
    axes.set(xlabel="predicted", ylabel="true", title=f"{shortened(title)}: {np.trace(counts)} of {counts.sum()} right")
    if len(classes) <= 20:
        for (row, column), share in np.ndenumerate(shares):
            ink = "white" if share > 50 else "black"
            axes.text(column, row, f"{share:.0f}", ha="center", va="center", fontsize=8, color=ink)
    return figure


def answers(
    pictures: NDArray[np.uint8], names: Sequence[str], best: Sequence[Sequence[tuple[str, float]]], title: str
) -> Figure:
    """Draw images beside bars of their most probable classes, one row an image.

    Args:
        pictures: uint8 [N, height, width, 3], RGB. They are enlarged without smoothing.
        names: of the images.
        best: the classes of each image with their probabilities in [0, 1], most probable first.
        title: names the network that gave the answers.
    """
    height = 0.5 + 1.1 * len(pictures)
    figure = Figure(figsize=(7, height))
    figure.suptitle(shortened(title), y=1 - 0.15 / height, va="top", fontsize="medium")
    margins = {"left": 0.03, "right": 0.97, "top": 1 - 0.6 / height, "bottom": 0.1 / height}
    grid = figure.subplots(
        len(pictures), 2, squeeze=False, width_ratios=(1, 5), gridspec_kw={**margins, "hspace": 0.35, "wspace": 0.03}
    )
    for (left, right), picture, name, classes in zip(grid, pictures, names, best, strict=True):
        left.imshow(picture, interpolation="nearest")
        left.set_axis_off()
        right.set_axis_off()
        right.set_title(shortened(name), loc="left", fontsize="small")
        right.set(xlim=(0, 100), ylim=(len(classes) - 0.4, -0.6))
        shares = [100 * probability for _, probability in classes]
        colours = [TRAINING, *["#BBBBBB"] * (len(classes) - 1)]
        right.barh(range(len(classes)), [0.6 * share for share in shares], left=30, height=0.8, color=colours)
        for place, ((label, _), share) in enumerate(zip(classes, shares, strict=True)):
            right.text(29, place, shortened(label, 40), ha="right", va="center", fontsize="small")
            right.text(31 + 0.6 * share, place, f"{share:.1f} %", va="center", fontsize="small")
    return figure


def shortened(text: str, length: int = 75) -> str:
    """Return a path or a name without its beginning if it is too long for the figure."""
    text = escaped(text)
    return text if len(text) <= length else "…" + text[1 - length :]
