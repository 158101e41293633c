"""Draw charts of several runs in the same axes."""

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any

import numpy as np
from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from overfitting_lab.comparison.groups import Group, NamedRun, shared_instrument
from overfitting_lab.runs.epochs import PROBE
from overfitting_lab.runs.figures import Curve, metric_curve, shortened, usual_losses

RUNS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # on white and on black (Okabe & Ito 2008)
FEWEST = 10  # images that a bin needs for its accuracy to be drawn
MARKERS = ("", "o", "s", "^", "v", "D")  # the next one each time the colours are used up
SEED: dict[str, Any] = {"linewidth": 0.7, "alpha": 0.5, "marker": "", "zorder": 1.9}  # of one seed, behind the mean


def style(place: int) -> dict[str, Any]:
    """Return the style of the line at a place among others, which shows a run or the mean over seeds."""
    colour, marker = RUNS[place % len(RUNS)], MARKERS[place // len(RUNS) % len(MARKERS)]
    return {"color": colour, "marker": marker, "linewidth": 1.8, "markersize": 4, "gid": f"run-{place}"}


def draw_curves(axes: Axes, groups: Sequence[Group], metric: str) -> None:
    """Draw one metric over epochs: validation solid, training dashed, each group in its colour.

    The metric is ``loss`` in nats, ``acc`` in per cent, or one of the runs' own. The training curves show the probe. If
    one of the runs has no probe, they all show the metric that was measured during training. A first training loss may
    lie above the axis.
    """
    training = "probe" if shared_instrument(groups) == "probe" else "train"  # as curve_lines says
    for place, group in enumerate(groups):
        _draw_metric(axes, group, f"{training}_{metric}", style(place) | {"linestyle": "--"})
        _draw_metric(axes, group, f"val_{metric}", style(place))
    if metric not in ("loss", "acc"):
        label_axes(axes, metric)
        return
    # The first training loss comes from the initial weights and may lie far above the others, off the chart.
    runs = [run for group in groups for run in group.runs]
    highest = max((loss for run in runs for loss in usual_losses(run.run.records)), default=0)
    axes.set_ylim(0, 100 if metric == "acc" else 1.05 * highest or None)
    label_axes(axes, "accuracy (%)" if metric == "acc" else "cross-entropy (nats)")


def curve_lines(groups: Sequence[Group]) -> dict[str, str]:
    """Return the line styles of :func:`draw_curves` by what they show."""
    training = "training images, evaluated" if shared_instrument(groups) == "probe" else "training"
    return {"validation": "-", training: "--"}


def draw_gap(axes: Axes, groups: Sequence[Group]) -> None:
    """Draw the generalization gap over epochs, in points: from the probe if all runs have one, else from training."""
    instrument = shared_instrument(groups)
    gap = "gap" if instrument == "probe" else "training_gap"
    for place, group in enumerate(groups):
        _draw_metric(axes, group, gap, style(place))
    axes.axhline(0, color=rcParams["axes.edgecolor"], linewidth=0.8)
    label_axes(axes, f"{instrument} minus validation (points)")


def draw_accuracies(axes: Axes, groups: Sequence[Group]) -> None:
    """Draw test accuracies as points with their intervals, in per cent, one below the other.

    One run has Wilson's interval. For several seeds, the point is their mean with Student's interval, and each seed is
    a dot.
    """
    for place, group in enumerate(groups):
        accuracy = group.accuracy if group.several else group.runs[0].accuracy
        x, mine = 100 * accuracy.value, {"color": style(place)["color"], "gid": f"run-{place}"}
        axes.plot([100 * accuracy.low, x, 100 * accuracy.high], [place] * 3, "|-", markevery=[0, 2], **mine)
        axes.plot(x, place, "o", **mine)
        if group.several:
            axes.plot([100 * each for each in group.accuracies], [place + 0.2] * len(group.seeds), ".", **mine)
        axes.annotate(
            f"{accuracy.value:.1%}", (x, place), (0, 7), textcoords="offset points", ha="center", gid=mine["gid"]
        )
    axes.set_yticks(range(len(groups)), [shortened(group.name, 40) for group in groups])
    axes.set_ylim(len(groups) - 0.5, -0.6)
    axes.margins(x=0.15)
    label_axes(axes, x="test accuracy (%), 95 % interval")


def draw_learned(axes: Axes, groups: Sequence[Group]) -> None:
    """Draw the share of training images learned for good by each epoch, in per cent; see ``callbacks.images``."""
    for place, group in enumerate(groups):
        _draw(axes, group, learned_curve, style(place))
    axes.set_ylim(0, 100)
    label_axes(axes, "training images learned for good (%)")


def draw_label_noise(axes: Axes, groups: Sequence[Group]) -> None:
    """Draw the probe's accuracy under label noise over epochs, in per cent.

    Images with their true label are solid. Of the images that drew another label, answers that name it are dashed, and
    answers that name the true class are dotted.
    """
    for place, group in enumerate(groups):
        for metric, line in zip(PROBE[2:], ("-", "--", ":"), strict=True):
            _draw_metric(axes, group, metric, style(place) | {"linestyle": line})
    axes.set_ylim(0, 100)
    label_axes(axes, "accuracy on training images (%)")


def draw_reliability(axes: Axes, groups: Sequence[Group], *, at_temperature: bool = False) -> None:
    """Draw accuracy against confidence, in per cent, for bins of at least 10 test images (Guo et al. 2017, fig. 1).

    Of several seeds, a bin has the predictions of all of them. With ``at_temperature``, the outputs of each run are
    divided by its temperature. A group with a run that has none is left out.
    """
    axes.plot([0, 100], [0, 100], color=rcParams["axes.edgecolor"], linewidth=0.8)
    for place, group in enumerate(groups):
        if (found := group.calibration_at_temperature if at_temperature else group.calibration) is not None:
            seen = found.counts >= FEWEST
            axes.plot(100 * found.confidences[seen], 100 * found.accuracies[seen], **style(place) | {"marker": "o"})
    axes.set(xlim=(0, 100), ylim=(0, 100))
    label_axes(axes, "test accuracy (%)", f"confidence{' at the temperature' if at_temperature else ''} (%)")


def mean_curve(group: Group, curve: Callable[[NamedRun], Curve]) -> Curve:
    """Return the curve of one run, or the mean over several seeds as far as all have values."""
    curves = [curve(run) for run in group.seeds]
    shared = reduce(np.intersect1d, [x for x, _ in curves])
    return shared, np.mean([y[np.isin(x, shared)] for x, y in curves], axis=0)


def mean_metric(group: Group, metric: str) -> Curve:
    """Return a metric over epochs, see :func:`metric_curve`, of one run or as the mean over several seeds."""
    return mean_curve(group, lambda run: metric_curve(run.run.records, metric))


def _draw_metric(axes: Axes, group: Group, metric: str, line: dict[str, Any]) -> None:
    _draw(axes, group, lambda run: metric_curve(run.run.records, metric), line)


def _draw(axes: Axes, group: Group, curve: Callable[[NamedRun], Curve], line: dict[str, Any]) -> None:
    """Draw the mean curve of a group, and a thin line for each of several seeds behind it."""
    for run in group.runs if group.several else []:
        axes.plot(*curve(run), **line | SEED)
    axes.plot(*mean_curve(group, curve), **line)


def learned_curve(run: NamedRun) -> Curve:
    """Return the epochs, and the per cent of training images that are learned: no mistake on them follows."""
    learned = run.run.images.get("train_learned")
    if learned is None or not (learned >= 0).any():
        return np.array([]), np.array([])
    counts = np.bincount(learned[learned >= 0], minlength=run.summary.epochs + 1)[:-1]
    return np.arange(1.0, len(counts) + 1), 100 * np.cumsum(counts) / (learned >= 0).sum()


def label_axes(axes: Axes, y: str = "", x: str = "epoch") -> None:
    """Name the axes, and give them the grid of all charts."""
    axes.set(xlabel=x, ylabel=y)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def add_legend(figure: Figure, groups: Sequence[Group], lines: Mapping[str, Any]) -> None:
    """Name the groups above a figure, and in grey its kinds of lines, each with a line style of matplotlib."""
    handles = [Line2D([], [], label=shortened(group.label, 60), **style(place)) for place, group in enumerate(groups)]
    handles += [Line2D([], [], color="grey", linestyle=line, label=name) for name, line in lines.items()]
    if any(group.several for group in groups):
        handles += [Line2D([], [], label="one seed", **{"color": "grey"} | SEED)]
    columns = min(5 if len(groups) < 5 else 2, len(handles))
    figure.legend(handles=handles, loc="outside upper center", ncols=columns, frameon=False)
