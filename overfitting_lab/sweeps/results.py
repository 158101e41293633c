"""Results of an ablation as tables, figures and numbers."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from overfitting_lab.comparison.charts import RUNS, label_axes
from overfitting_lab.comparison.report import render
from overfitting_lab.comparison.statistics import CONFIDENCE, Estimate, mean, welch_difference
from overfitting_lab.runs.figures import save_figure
from overfitting_lab.runs.files import write_text
from overfitting_lab.runs.notes import attempt
from overfitting_lab.sweeps.factorial import Effect, cells, effects, images_for, remedies_of
from overfitting_lab.sweeps.trial import Trial

RESPONSES = {"test_acc": "test accuracy", "gap": "generalization gap", "calibration_error": "calibration error"}
Content = Mapping[str, Any]
Worth = tuple[tuple[str, ...], Estimate]  # remedies, and the test accuracy with them


def write_factorial(trials: Sequence[Trial], facts: Content, folder: Path) -> list[Path]:
    """Write table, figure and numbers of a factorial: ``factorial-SIZE.md``, ``.png`` and ``.json``.

    It needs a trial of every cell, with one number of training images. ``facts`` are ``train_size`` and ``command``.
    """
    size, by_cell = f"{facts['train_size']:,} training images", _by_cell(trials)
    seeds = "/".join(map(str, sorted({len(same) for _, same in by_cell})))
    found = {response: effects(trials, response) for response in _responses(trials)}
    figure = Figure(figsize=(5.5 * len(found), 4.2), layout="constrained")
    figure.suptitle(f"Effect of each remedy at {size}, {_epochs(trials)}, n = {seeds}")
    for axes, (response, estimates) in zip(figure.subplots(1, len(found), sharey=True), found.items(), strict=True):
        _draw_effects(axes, estimates, f"effect on the\n{RESPONSES[response]} (points)")
    content = {
        "size": size,
        "cells": [(remedy_name(remedies), *_means(same, "train_acc", "val_acc", *found)) for remedies, same in by_cell],
        "several": all(effect.estimate.known for effect in found["test_acc"]),
        "responses": [RESPONSES[response] for response in found],
        "effects": [
            (_effect_name(effects[0]), [effect.estimate for effect in effects])
            for effects in zip(*found.values(), strict=True)
        ],
        "excluding": f"{1 - CONFIDENCE**7:.0%}",
        "alone": [
            (remedy_name(remedies), welch_difference(_accuracies(same), _accuracies(by_cell[0][1])).points)
            for remedies, same in by_cell
            if len(remedies) == 1 and min(len(same), len(by_cell[0][1])) > 1
        ],
    }
    return _write(folder / f"factorial-{facts['train_size']}", "factorial", content, figure, trials, facts)


def write_sizes(trials: Sequence[Trial], remedied: Sequence[Trial], facts: Content, folder: Path) -> list[Path]:
    """Write a learning curve, with the worth of the remedies in images: ``sizes.md``, ``.png`` and ``.json``.

    ``trials`` are without remedies, of several sizes; ``remedied`` are those of the factorial, if there are any.
    ``facts`` are ``train_size`` of the factorial and ``command`` of the curve.
    """
    sizes = sorted({trial.setting["size"] for trial in trials})
    by_size = [[trial for trial in trials if trial.setting["size"] == size] for size in sizes]
    curve = [mean(_accuracies(same)) for same in by_size]
    worth = [(remedies, mean(_accuracies(same))) for remedies, same in _by_cell(remedied) if remedies and same]

    def more(accuracy: float) -> str:
        images = images_for(accuracy, sizes, [point.value for point in curve])
        if np.isnan(images):
            return f"fewer than {sizes[0]:,} images in all"
        if np.isinf(images):
            return f"more than {sizes[-1]:,} images in all"
        return f"{images - facts['train_size']:+,.0f} images"

    figure = Figure(figsize=(8, 5), layout="constrained")
    _draw_curve(figure.subplots(), sizes, curve, worth)
    content = {
        "responses": [RESPONSES[response] for response in _responses(trials)],
        "rows": [(f"{size:,}", *_means(same, *_responses(trials))) for size, same in zip(sizes, by_size, strict=True)],
        "worth": [
            (remedy_name(remedies), more(found.value), [more(end) for end in (found.low, found.high) if found.known])
            for remedies, found in worth
        ],
    }
    return _write(folder / "sizes", "sizes", content, figure, trials, facts)


def remedy_name(remedies: Sequence[str]) -> str:
    """Return a readable name of the remedies, such as ``dropout and weight decay``."""
    *others, last = [{"augment": "augmentation"}.get(name, name.replace("_", " ")) for name in remedies] or ["none"]
    return f"{', '.join(others)} and {last}" if others else last


def _effect_name(effect: Effect) -> str:
    return " x ".join(remedy_name([name]) for name in effect.remedies)


def _by_cell(trials: Sequence[Trial]) -> list[tuple[tuple[str, ...], list[Trial]]]:
    """Return the remedies and the trials of each cell. The first one has no remedy."""
    return [(remedies_of(cell), [trial for trial in trials if trial.has(cell)]) for cell in cells()]


def _accuracies(trials: Sequence[Trial]) -> list[float]:
    return [trial.test_acc for trial in trials]


def _write(
    path: Path, template: str, content: Content, figure: Figure, trials: Sequence[Trial], facts: Content
) -> list[Path]:
    origins = [f"{key} {', '.join(sorted({str(each.origin[key]) for each in trials}))}" for key in trials[0].origin]
    probed = {trial.gap_instrument for trial in trials} == {"probe"}
    about = {**facts, "epochs": _epochs(trials), "origin": "; ".join(origins), "probed": probed}
    text = render(Path(__file__).with_name("templates") / f"{template}.md", {**content, **about})
    numbers = json.dumps({**facts, "trials": [asdict(trial) for trial in trials]}, indent=1) + "\n"
    paths = [path.with_name(f"{path.name}.{ending}") for ending in ("md", "png", "json")]
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):  # two workers may end at the same moment
        write_text(paths[0], text)
        with attempt(paths[1].name):
            save_figure(paths[1], figure)
        write_text(paths[2], numbers)
    return paths


def _responses(trials: Sequence[Trial]) -> list[str]:
    """Return the responses that every trial has."""
    return [response for response in RESPONSES if all(getattr(trial, response) is not None for trial in trials)]


def _epochs(trials: Sequence[Trial]) -> str:
    least, most = min(trial.epochs for trial in trials), max(trial.epochs for trial in trials)
    return f"{least} to {most} epochs" if least < most else f"{most} epoch{'s' * (most > 1)}"


def _means(trials: Sequence[Trial], *responses: str) -> list[str]:
    """Return the number of trials, then mean and standard deviation of each response."""
    cells = [str(len(trials))]
    for response in responses:
        values = [getattr(trial, response) for trial in trials]
        spread = f" ± {100 * np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
        cells.append(f"{100 * np.mean(values):.1f}{spread}{' %' if response.endswith('acc') else ''}")
    return cells


def _draw_effects(axes: Axes, found: Sequence[Effect], label: str) -> None:
    for place, effect in enumerate(found):
        estimate, colour = effect.estimate, RUNS[0] if len(effect.remedies) == 1 else "grey"
        value = 100 * estimate.value
        width = [[value - 100 * estimate.low], [100 * estimate.high - value]] if estimate.known else None
        axes.errorbar(value, place, xerr=width, fmt="o", color=colour, capsize=4)
        axes.annotate(f"{value:+.1f}", (value, place), (0, 7), textcoords="offset points", ha="center", fontsize=9)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(found)), [_effect_name(effect) for effect in found])
    axes.set_ylim(len(found) - 0.5, -0.7)
    label_axes(axes, x=label)


def _draw_curve(axes: Axes, sizes: Sequence[int], curve: Sequence[Estimate], worth: Sequence[Worth]) -> None:
    values = np.array([point.value for point in curve])
    ends = np.array([(point.low, point.high) if point.known else (point.value, point.value) for point in curve]).T
    width = 100 * np.abs(ends - values)
    axes.errorbar(sizes, 100 * values, yerr=width, fmt="o-", color="black", capsize=4, label="no remedy")
    for place, (remedies, accuracy) in enumerate(worth):
        needed, height = images_for(accuracy.value, sizes, values.tolist()), 100 * accuracy.value
        end = min(max(needed, sizes[0]), sizes[-1]) if np.isfinite(needed) else sizes[-1]
        colour, line = RUNS[place % len(RUNS)], "-" if place < len(RUNS) else "--"
        axes.plot([sizes[0], end], [height, height], line, color=colour, label=remedy_name(remedies))
        if np.isfinite(needed):
            axes.plot([end, end], [0, height], ":", color=colour, linewidth=1)
    label_axes(axes, "test accuracy (%)", "training images")
    axes.set_xscale("log")
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes], rotation=30)
    axes.minorticks_off()
    highest = max([*values, *(accuracy.value for _, accuracy in worth)])
    axes.set_ylim(90 * min(values), 105 * highest)
    axes.legend(fontsize=9)
