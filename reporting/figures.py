"""Figures of runs. Each function returns a matplotlib Figure that belongs to no window and no global state."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

TRAINING, VALIDATION = "#0072B2", "#D55E00"  # told apart by colour-blind eyes (Okabe & Ito 2008)


def curves(rows: Sequence[dict[str, float | None]], title: str) -> Figure:
    """Loss and accuracy over epochs, training and validation in the same axes.

    Args:
        rows: one an epoch, with ``epoch``, ``train_loss``, ``train_acc``, ``val_loss`` and ``val_acc``; none where
            there was no validation. Losses are in nats, accuracies fractions of 1.
        title: what the run is.
    """
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
                axes.plot(epochs, factor * values, color=colour, label=name, marker="o", markersize=3)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
        axes.legend()
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
