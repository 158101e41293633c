"""Results of an ablation as tables, figures and numbers."""

import json
from collections.abc import Iterator, Mapping, Sequence
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
from overfitting_lab.runs.files import save_figure, write_text
from overfitting_lab.sweeps.factorial import Effect, Trial, cells, effects, images_for, remedies_of

TEMPLATES = Path(__file__).with_name("templates")
RESPONSES = {"test_acc": "test accuracy", "gap": "gap between training and validation"}
Content = Mapping[str, Any]
Worth = tuple[tuple[str, ...], Estimate]  # remedies, and the test accuracy with them


def write_factorial(trials: Sequence[Trial], facts: Content, folder: Path) -> list[Path]:
    """Write table, figure and numbers of a factorial: ``factorial-SIZE.md``, ``.png`` and ``.json``.

    It needs a trial of every cell, with one number of training images. ``facts`` are ``train_size`` and ``command``.
    """
    size = f"{facts['train_size']:,} training images"
    seeds = "/".join(map(str, sorted({len(_having(trials, setting)) for setting in cells()})))
    found = {response: effects(trials, response) for response in RESPONSES}
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    figure.suptitle(f"Effect of each remedy at {size}, {_epochs(trials)}, n = {seeds}")
    for axes, (response, estimates) in zip(figure.subplots(1, 2, sharey=True), found.items(), strict=True):
        _draw_effects(axes, estimates, f"effect on the\n{RESPONSES[response]} (points)")
    content = {
        "size": size,
        "cells": [
            (remedy_name(remedies_of(cell)), *_means(_having(trials, cell), "train_acc", "val_acc", "gap", "test_acc"))
            for cell in cells()
        ],
        "several": all(effect.estimate.known for effect in found["test_acc"]),
        "effects": [
            (_effect_name(accuracy), accuracy.estimate.in_points(), gap.estimate.in_points())
            for accuracy, gap in zip(*found.values(), strict=True)
        ],
        "excluding": f"{1 - CONFIDENCE**7:.0%}",
        "sentences": [*_effect_sentences(found["test_acc"]), *_alone_sentences(trials)],
    }
    return _write(folder / f"factorial-{facts['train_size']}", "factorial", content, figure, trials, facts)


def write_sizes(trials: Sequence[Trial], remedied: Sequence[Trial], facts: Content, folder: Path) -> list[Path]:
    """Write a learning curve, with the worth of the remedies in images: ``sizes.md``, ``.png`` and ``.json``.

    ``trials`` are without remedies, of several sizes; ``remedied`` are those of the factorial, if there are any.
    ``facts`` are ``train_size`` of the factorial and ``command`` of the curve.
    """
    sizes = sorted({trial.setting["size"] for trial in trials})
    curve = [mean([trial.test_acc for trial in _having(trials, {"size": size})]) for size in sizes]
    worth = [
        (remedies_of(setting), mean([trial.test_acc for trial in same]))
        for setting in cells()
        if (same := _having(remedied, setting)) and remedies_of(setting)
    ]
    figure = Figure(figsize=(8, 5), layout="constrained")
    _draw_curve(figure.subplots(), sizes, curve, worth)
    sentences = []
    for remedies, accuracy in worth:
        ends = (accuracy.low, accuracy.high) if accuracy.known else ()
        needed = [images_for(value, sizes, [point.value for point in curve]) for value in (accuracy.value, *ends)]
        value = _worth(needed, facts["train_size"], sizes)
        sentences.append(f"{remedy_name(remedies).capitalize()} at {facts['train_size']:,} images: {value}.")
    rows = [(f"{size:,}", *_means(_having(trials, {"size": size}), "test_acc", "gap")) for size in sizes]
    return _write(folder / "sizes", "sizes", {"rows": rows, "sentences": sentences}, figure, trials, facts)


def remedy_name(remedies: Sequence[str]) -> str:
    """Return a readable name of the remedies, such as ``dropout and weight decay``."""
    *others, last = [{"augment": "augmentation"}.get(name, name.replace("_", " ")) for name in remedies] or ["none"]
    return f"{', '.join(others)} and {last}" if others else last


def _effect_name(effect: Effect) -> str:
    return " x ".join(remedy_name([name]) for name in effect.remedies)


def _having(trials: Sequence[Trial], setting: Mapping[str, Any]) -> list[Trial]:
    return [trial for trial in trials if trial.has(setting)]


def _write(
    path: Path, template: str, content: Content, figure: Figure, trials: Sequence[Trial], facts: Content
) -> list[Path]:
    origins = [f"{key} {', '.join(sorted({str(each.origin[key]) for each in trials}))}" for key in trials[0].origin]
    content = {**content, "epochs": _epochs(trials), "origin": "; ".join(origins), "command": facts["command"]}
    text = render(TEMPLATES / f"{template}.md", content)
    numbers = json.dumps({**facts, "trials": [asdict(trial) for trial in trials]}, indent=1) + "\n"
    paths = [path.with_name(f"{path.name}.{ending}") for ending in ("md", "png", "json")]
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):  # two workers may end at the same moment
        write_text(paths[0], text)
        save_figure(paths[1], figure)
        write_text(paths[2], numbers)
    return paths


def _epochs(trials: Sequence[Trial]) -> str:
    least, most = min(trial.epochs for trial in trials), max(trial.epochs for trial in trials)
    return f"{least} to {most} epochs" if least < most else f"{most} epoch{'s' * (most > 1)}"


def _means(trials: Sequence[Trial], *responses: str) -> list[str]:
    """Return the number of trials, then mean and standard deviation of each response."""
    cells = [str(len(trials))]
    for response in responses:
        values = [getattr(trial, response) for trial in trials]
        spread = f" ± {100 * np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
        cells.append(f"{100 * np.mean(values):.1f}{spread}{'' if response == 'gap' else ' %'}")
    return cells


def _effect_sentences(found: Sequence[Effect]) -> Iterator[str]:
    for effect in found:
        name, estimate = _effect_name(effect).capitalize(), effect.estimate
        if len(effect.remedies) == 1:
            verdict = f", {'more than noise' if estimate.beyond_noise else 'which may be noise'} between seeds."
            noise = verdict if estimate.known else "; one seed cannot tell if that is noise."
            yield f"{name} moves test accuracy by {estimate.in_points()} points on average over the others{noise}"
        elif estimate.beyond_noise:
            more = "more" if estimate.value > 0 else "less"
            yield f"{name}: together they add {more} than the sum of each alone ({estimate.in_points()})."


def _alone_sentences(trials: Sequence[Trial]) -> Iterator[str]:
    none, *settings = cells()
    bare = [trial.test_acc for trial in _having(trials, none)]
    for setting in settings:
        remedies, alone = remedies_of(setting), [trial.test_acc for trial in _having(trials, setting)]
        if len(remedies) == 1 and min(len(bare), len(alone)) > 1:
            points = welch_difference(alone, bare).points.in_points()
            yield f"{remedy_name(remedies).capitalize()} alone, against none: {points} points."


def _worth(needed: Sequence[float], train_size: int, sizes: Sequence[int]) -> str:
    """Describe what remedies are worth; ``needed`` are images for the accuracy and, if known, for its interval."""

    def more(images: float) -> str:
        if np.isnan(images):
            return f"fewer than {sizes[0]:,} images in all"
        if np.isinf(images):
            return f"more than {sizes[-1]:,} images in all"
        return f"{images - train_size:+,.0f} images"

    value, *ends = needed
    text = f"worth {'as much as ' * bool(np.isfinite(value))}{more(value)}"
    return f"{text} ({' to '.join(map(more, ends))})" if ends else text


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
