"""Draw charts of several runs in the same axes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from overfitting_lab.comparison.comparison import NamedRun
from overfitting_lab.runs.epochs import PROBE, has_probe
from overfitting_lab.runs.figures import draw_metric, usual_losses

RUNS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # on white and on black (Okabe & Ito 2008)
FEWEST = 10  # images that a bin needs for its accuracy to be drawn
MARKERS = ("", "o", "s", "^", "v", "D")  # the next one each time the colours are used up


def style(place: int) -> dict[str, Any]:
    """Return the line style of the run at a place among others."""
    colour, marker = RUNS[place % len(RUNS)], MARKERS[place // len(RUNS) % len(MARKERS)]
    return {"color": colour, "marker": marker, "linewidth": 1.8, "markersize": 4, "gid": f"run-{place}"}


def draw_curves(axes: Axes, runs: Sequence[NamedRun], metric: str) -> None:
    """Draw one metric of several runs over epochs: validation solid, training dashed, each run in its colour.

    The metric is ``loss`` in nats, or ``acc`` in per cent. The training curve shows the probe. For a run without a
    probe, it shows the metric that was measured during training. A first training loss may lie above the axis.
    """
    for place, run in enumerate(runs):
        instrument = "probe" if has_probe(run.run.records) else "train"
        draw_metric(axes, run.run.records, f"{instrument}_{metric}", linestyle="--", **style(place))
        draw_metric(axes, run.run.records, f"val_{metric}", **style(place))
    # The first training loss comes from the initial weights and may lie far above the others, off the chart.
    highest = max((loss for run in runs for loss in usual_losses(run.run.records)), default=0)
    axes.set_ylim(0, 100 if metric == "acc" else 1.05 * highest or None)
    label_axes(axes, "accuracy (%)" if metric == "acc" else "cross-entropy (nats)")


def draw_gap(axes: Axes, runs: Sequence[NamedRun]) -> None:
    """Draw the generalization gap of several runs over epochs, in points: see :func:`last_gap`."""
    for place, run in enumerate(runs):
        draw_metric(axes, run.run.records, "gap" if has_probe(run.run.records) else "training_gap", **style(place))
    axes.axhline(0, color=rcParams["axes.edgecolor"], linewidth=0.8)
    label_axes(axes, "generalization gap (points)")


def draw_accuracies(axes: Axes, runs: Sequence[NamedRun]) -> None:
    """Draw test accuracies as points with their intervals, in per cent, one below the other."""
    for place, run in enumerate(runs):
        accuracy = run.accuracy
        x, mine = 100 * accuracy.value, {"color": style(place)["color"], "gid": f"run-{place}"}
        axes.plot([100 * accuracy.low, x, 100 * accuracy.high], [place] * 3, "|-", markevery=[0, 2], **mine)
        axes.plot(x, place, "o", **mine)
        axes.annotate(
            f"{accuracy.value:.1%}", (x, place), (0, 7), textcoords="offset points", ha="center", gid=mine["gid"]
        )
    axes.set_yticks(range(len(runs)), [run.name for run in runs])
    axes.set_ylim(len(runs) - 0.5, -0.6)
    axes.margins(x=0.15)
    label_axes(axes, x="test accuracy (%), 95 % interval")


def draw_learned(axes: Axes, runs: Sequence[NamedRun]) -> None:
    """Draw the share of training images learned for good by each epoch, in per cent; see ``callbacks.images``."""
    for place, run in enumerate(runs):
        learned = run.run.images.get("train_learned")
        if learned is None or not (learned >= 0).any():
            continue
        counts = np.bincount(learned[learned >= 0], minlength=run.summary.epochs + 1)[:-1]
        shares = 100 * np.cumsum(counts) / (learned >= 0).sum()
        axes.plot(np.arange(1, len(shares) + 1), shares, **style(place))
    axes.set_ylim(0, 100)
    label_axes(axes, "training images learned for good (%)")


def draw_label_noise(axes: Axes, runs: Sequence[NamedRun]) -> None:
    """Draw the probe's accuracy of several runs with label noise over epochs, in per cent.

    Images with their true label are solid. Of the images that drew another label, answers that name it are dashed, and
    answers that name the true class are dotted.
    """
    for place, run in enumerate(runs):
        for metric, line in zip(PROBE[2:], ("-", "--", ":"), strict=True):
            draw_metric(axes, run.run.records, metric, **style(place) | {"linestyle": line})
    axes.set_ylim(0, 100)
    label_axes(axes, "accuracy on training images (%)")


def draw_reliability(axes: Axes, runs: Sequence[NamedRun]) -> None:
    """Draw accuracy against confidence, in per cent, for bins of at least 10 test images (Guo et al. 2017, fig. 1)."""
    axes.plot([0, 100], [0, 100], color=rcParams["axes.edgecolor"], linewidth=0.8)
    for place, run in enumerate(runs):
        if (found := run.calibration) is not None:
            seen = found.counts >= FEWEST
            axes.plot(100 * found.confidences[seen], 100 * found.accuracies[seen], **style(place) | {"marker": "o"})
    axes.set(xlim=(0, 100), ylim=(0, 100))
    label_axes(axes, "test accuracy (%)", "confidence (%)")


def label_axes(axes: Axes, y: str = "", x: str = "epoch") -> None:
    """Name the axes, and give them the grid of all charts."""
    axes.set(xlabel=x, ylabel=y)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
