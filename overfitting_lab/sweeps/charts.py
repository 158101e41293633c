"""Figures of an ablation."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from overfitting_lab.comparison.charts import RUNS, label_axes
from overfitting_lab.comparison.statistics import Estimate
from overfitting_lab.sweeps.effects import images_for

SPAN = 8  # ratio of the largest level to the smallest from which on their axis is logarithmic


def draw_estimates(axes: Axes, names: Sequence[str], found: Sequence[Estimate], highlighted: int, label: str) -> None:
    """Draw differences in points with their intervals, one below the other, the first ``highlighted`` in colour."""
    for place, estimate in enumerate(found):
        value, colour = 100 * estimate.value, RUNS[0] if place < highlighted else "grey"
        width = [[value - 100 * estimate.low], [100 * estimate.high - value]] if estimate.known else None
        axes.errorbar(value, place, xerr=width, fmt="o", color=colour, capsize=4)
        axes.annotate(f"{value:+.1f}", (value, place), (0, 7), textcoords="offset points", ha="center", fontsize=9)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(found)), names)
    axes.set_ylim(len(found) - 0.5, -0.7)
    label_axes(axes, x=label)


def draw_curve(axes: Axes, levels: Sequence[float], curve: Sequence[Estimate], y: str, x: str) -> None:
    """Draw a response over the levels of a factor, with intervals, on a logarithmic axis if they span it."""
    values = np.array([point.value for point in curve])
    ends = np.array([(point.low, point.high) if point.known else (point.value, point.value) for point in curve]).T
    axes.errorbar(levels, 100 * values, yerr=100 * np.abs(ends - values), fmt="o-", color="black", capsize=4)
    label_axes(axes, y, x)
    positive = [level for level in levels if level > 0]
    if min(levels) >= 0 and positive and max(positive) >= SPAN * min(positive):
        axes.set_xscale("symlog", linthresh=min(positive), linscale=0.5)
    else:
        axes.set_xscale("linear")
    axes.set_xticks(levels, [f"{level:,}" for level in levels], rotation=30)
    axes.minorticks_off()


def draw_worth(
    axes: Axes, sizes: Sequence[int], curve: Sequence[Estimate], worth: Sequence[tuple[str, Estimate]]
) -> None:
    """Draw where a learning curve reaches the test accuracy with each remedy, by name."""
    values = [point.value for point in curve]
    for place, (name, accuracy) in enumerate(worth):
        needed, height = images_for(accuracy.value, sizes, values), 100 * accuracy.value
        end = sizes[0] if np.isnan(needed) else min(needed, sizes[-1])
        colour, line = RUNS[place % len(RUNS)], "-" if place < len(RUNS) else "--"
        axes.plot([sizes[0], end], [height, height], line, color=colour, label=name, marker=".", markevery=[-1])
        if np.isfinite(needed):
            axes.plot([end, end], [0, height], ":", color=colour, linewidth=1)
    ends = [end for point in curve if point.known for end in (point.low, point.high)]
    shown = [*values, *ends, *(accuracy.value for _, accuracy in worth)]
    axes.set_ylim(90 * min(shown), 105 * max(shown))
    if worth:
        axes.legend(fontsize=9)
