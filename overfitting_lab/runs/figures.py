"""Figures of runs. Each function returns a matplotlib Figure that belongs to no window and no global state."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from overfitting_lab.runs.epochs import EpochRecord

TRAINING, VALIDATION = "#0072B2", "#D55E00"  # told apart by colour-blind eyes (Okabe & Ito 2008)


def curves(records: Sequence[EpochRecord], title: str) -> Figure:
    """Loss and accuracy over epochs, training and validation in the same axes.

    Args:
        records: one an epoch, with ``epoch``, ``train_loss``, ``train_acc``, ``val_loss`` and ``val_acc``; none where
            there was no validation. Losses are in nats, accuracies fractions of 1.
        title: what the run is.
    """
    rows = [asdict(record) for record in records]
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    figure.suptitle(title)
    loss, accuracy = figure.subplots(1, 2)
    for axes, metric, label, factor in (
        (loss, "loss", "cross-entropy (nats)", 1),
        (accuracy, "acc", "accuracy (%)", 100),
    ):
        for split, colour in (("train", TRAINING), ("val", VALIDATION)):
            points = [
                (row["epoch"], row[f"{split}_{metric}"]) for row in rows if row.get(f"{split}_{metric}") is not None
            ]
            if points:
                epochs, values = np.array(points, dtype=float).T
                name = {"train": "training", "val": "validation"}[split]
                axes.plot(epochs + 1, factor * values, color=colour, label=name, marker="o", markersize=3)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
    loss.legend(loc="upper right")
    accuracy.legend(loc="lower right")  # where neither curve of a run that over-fits ends
    _limit_loss(loss, rows)
    accuracy.set_ylim(0, 100)
    return figure


def _limit_loss(axes: Axes, rows: Sequence[dict[str, float | None]]) -> None:
    """Leaves the first epoch's training loss, taken on weights just drawn, outside where it would dwarf the rest."""
    first, *others = [row["train_loss"] for row in rows] or [None]
    rest = [loss for loss in [*others, *(row["val_loss"] for row in rows)] if loss is not None and np.isfinite(loss)]
    axes.set_ylim(bottom=0)
    if first is not None and rest and first > 1.5 * max(rest):
        axes.set_ylim(top=1.1 * max(rest))
        axes.set_title(f"training loss of the first epoch, {first:.1f}, not shown", fontsize="small", loc="left")


def confusion_matrix(counts: NDArray[Any], classes: Sequence[str], title: str) -> Figure:
    """How often each true class (row) was taken for each class (column), in per cent of the row.

    Args:
        counts: integers [classes, classes].
        classes: their names.
        title: which images were counted.
    """
    shares = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = max(5.0, 1.5 + 0.55 * len(classes))
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    axes.set_xticks(range(len(classes)), classes, rotation=45, ha="right")
    axes.set_yticks(range(len(classes)), classes)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_title(f"{title}: {np.trace(counts)} of {counts.sum()} right")
    if len(classes) <= 20:
        for (row, column), share in np.ndenumerate(shares):
            axes.text(
                column,
                row,
                f"{share:.0f}",
                ha="center",
                va="center",
                fontsize=8,
                color="white" if share > 50 else "black",
            )
    return figure


def answers(
    pictures: NDArray[np.uint8], names: Sequence[str], best: Sequence[Sequence[tuple[str, float]]], title: str
) -> Figure:
    """Images beside bars of their most probable classes, one row an image.

    Args:
        pictures: uint8 [N, height, width, 3], RGB; enlarged without smoothing.
        names: of the images.
        best: for each image its classes with their probabilities in [0, 1], most probable first.
        title: what gave the answers.
    """
    height = 0.5 + 1.1 * len(pictures)
    figure = Figure(figsize=(7, height))
    figure.suptitle(_end(title), y=1 - 0.15 / height, va="top", fontsize="medium", parse_math=False)
    margins = {"left": 0.03, "right": 0.97, "top": 1 - 0.6 / height, "bottom": 0.1 / height}
    grid = figure.subplots(
        len(pictures), 2, squeeze=False, width_ratios=(1, 5), gridspec_kw={**margins, "hspace": 0.35, "wspace": 0.03}
    )
    for (left, right), picture, name, classes in zip(grid, pictures, names, best, strict=True):
        left.imshow(picture, interpolation="nearest")
        left.set_axis_off()
        right.set_axis_off()
        right.set_title(_end(name), loc="left", fontsize="small", parse_math=False)
        right.set_xlim(0, 100)
        right.set_ylim(len(classes) - 0.4, -0.6)
        shares = [100 * probability for _, probability in classes]
        colours = [TRAINING, *["#BBBBBB"] * (len(classes) - 1)]
        right.barh(range(len(classes)), [0.6 * share for share in shares], left=30, height=0.8, color=colours)
        for place, ((label, _), share) in enumerate(zip(classes, shares, strict=True)):
            right.text(29, place, label, ha="right", va="center", fontsize="small", parse_math=False)
            right.text(31 + 0.6 * share, place, f"{share:.1f} %", va="center", fontsize="small")
    return figure


def _end(path: str, length: int = 75) -> str:
    """The path, without its beginning where it is too long for the figure."""
    return path if len(path) <= length else "…" + path[1 - length :]
