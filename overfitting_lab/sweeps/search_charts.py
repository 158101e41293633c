"""Figures of a search."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from overfitting_lab.comparison.charts import RUNS, label_axes
from overfitting_lab.runs.epochs import Monitor, is_maximized
from overfitting_lab.sweeps.names import trial_name

COLUMNS = 3  # settings side by side, at most
MARGIN = 0.05  # beside a range, as a part of it
WINNER, OTHER, BEST = RUNS[1], RUNS[0], "black"


def history(trials: Sequence[FrozenTrial], winner: int, monitor: Monitor) -> Figure:
    """Draw the values of complete trials over their numbers, and the best value so far."""
    figure, axes = _figure()
    numbers = [trial.number + 1 for trial in trials]
    values = _values(trials, monitor)
    so_far = np.maximum.accumulate(values) if is_maximized(monitor) else np.minimum.accumulate(values)
    axes.step(numbers, so_far, where="post", color=BEST, linewidth=1, label="best so far")
    _draw_points(axes, numbers, trials, winner, monitor)
    label_axes(axes, _label(monitor), "trial")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlim(min(numbers) - 0.5, max(numbers) + 0.5)
    _add_legend(figure)
    return figure


def slices(trials: Sequence[FrozenTrial], winner: int, monitor: Monitor) -> Figure:
    """Draw the values of complete trials over each searched setting."""
    distributions = next(trial for trial in trials if trial.number == winner).distributions
    rows = math.ceil(len(distributions) / COLUMNS)
    columns = math.ceil(len(distributions) / rows)
    figure = Figure(figsize=(max(8, 4.5 * columns), 4.5 * rows), layout="constrained")
    for place, (key, values) in enumerate(distributions.items()):
        axes = figure.add_subplot(rows, columns, place + 1)
        with_key = [trial for trial in trials if key in trial.params]
        given = [trial.params[key] for trial in with_key]
        if isinstance(values, CategoricalDistribution):
            given = [values.choices.index(each) for each in given]
        _draw_points(axes, given, with_key, winner, monitor)
        label_axes(axes, "" if place % columns else _label(monitor), key)
        if isinstance(values, CategoricalDistribution):
            axes.set_xticks(range(len(values.choices)), [str(each) for each in values.choices], rotation=20)
            axes.set_xlim(-0.5, len(values.choices) - 0.5)
        else:
            _show_range(axes, values)
    _add_legend(figure)
    return figure


def epochs(trials: Sequence[FrozenTrial], winner: int, monitor: Monitor) -> Figure:
    """Draw the validations of each trial over its epochs, the first epoch at 1."""
    figure, axes = _figure()
    for trial in sorted(trials, key=lambda trial: trial.number == winner):  # the winner on top
        points = sorted(trial.intermediate_values.items())
        complete = trial.state is TrialState.COMPLETE  # Optuna gives a pruned trial its last value
        kind = "winner" if trial.number == winner else "complete" if complete else "pruned"
        axes.plot(
            [epoch + 1 for epoch, _ in points],
            [_scale(monitor) * value for _, value in points],
            marker="o",
            markersize=3,
            label=f"winner, {trial_name(winner)}" if kind == "winner" else f"{kind} trials",
            **_line(kind),
        )
    label_axes(axes, _label(monitor))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    _add_legend(figure)
    return figure


def importances(found: Mapping[str, float]) -> Figure:
    """Draw the importance of each setting as a bar, the largest at the top."""
    figure, axes = _figure()
    ordered = sorted(found.items(), key=lambda each: each[1])
    bars = axes.barh([key for key, _ in ordered], [value for _, value in ordered], color=OTHER)
    axes.bar_label(bars, fmt="%.2f", padding=3)
    label_axes(axes, x="importance (PED-ANOVA); the sum is 1")
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.set_xlim(0, 1.1 * max(found.values()))
    return figure


def _figure() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    return figure, figure.add_subplot()


def _draw_points(
    axes: Axes, places: Sequence[float], trials: Sequence[FrozenTrial], winner: int, monitor: Monitor
) -> None:
    """Draw the values of trials as points, the winner's in its own colour."""
    values = _values(trials, monitor)
    for is_winner, colour, label in ((False, OTHER, "trials"), (True, WINNER, f"winner, {trial_name(winner)}")):
        chosen = [index for index, trial in enumerate(trials) if (trial.number == winner) == is_winner]
        if chosen:
            axes.plot([places[index] for index in chosen], values[chosen], "o", color=colour, label=label)


def _show_range(axes: Axes, values: BaseDistribution) -> None:
    """Show the whole range that was searched, on its scale."""
    assert isinstance(values, IntDistribution | FloatDistribution)
    if values.log:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        margin = (values.high / values.low) ** MARGIN
        axes.set_xlim(values.low / margin, values.high * margin)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=isinstance(values, IntDistribution)))
        margin = (values.high - values.low) * MARGIN
        axes.set_xlim(values.low - margin, values.high + margin)


def _add_legend(figure: Figure) -> None:
    """Name each kind of point or line once, above the axes."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))
    figure.legend(once.values(), once.keys(), loc="outside upper right", ncols=len(once), fontsize=9, frameon=False)


def _line(kind: str) -> dict[str, Any]:
    return {
        "winner": {"color": WINNER, "linewidth": 2},
        "complete": {"color": OTHER, "linewidth": 1, "alpha": 0.5},
        "pruned": {"color": "grey", "linewidth": 1, "linestyle": "--", "alpha": 0.7},
    }[kind]


def _values(trials: Sequence[FrozenTrial], monitor: Monitor) -> np.ndarray[Any, np.dtype[np.float64]]:
    return _scale(monitor) * np.array([trial.value for trial in trials], dtype=float)


def _scale(monitor: Monitor) -> int:
    return 100 if monitor == "val_acc" else 1


def _label(monitor: Monitor) -> str:
    return {"val_acc": "val_acc (%)", "val_loss": "val_loss (nats)"}.get(monitor, monitor)
