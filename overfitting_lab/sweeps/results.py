"""Results of an ablation as tables, figures and numbers."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from overfitting_lab.comparison.charts import RUNS
from overfitting_lab.comparison.statistics import CONFIDENCE, Estimate, mean, welch_difference
from overfitting_lab.runs.files import replace_file
from overfitting_lab.sweeps.factorial import Effect, Trial, cells, effects, images_for, remedies_of

RESPONSES = {"test_acc": "test accuracy", "gap": "gap between training and validation"}
Worth = tuple[tuple[str, ...], Estimate]  # remedies, and the test accuracy with them


def write_factorial(trials: Sequence[Trial], facts: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write table, figure and numbers of a factorial.

    Args:
        trials: at least one of every cell, with one number of training images.
        facts: ``train_size``, and the ``command`` that trained them.
        folder: of the files.

    Returns:
        The paths of ``factorial-SIZE.md``, ``.png`` and ``.json``.
    """
    size = f"{facts['train_size']:,} training images"
    found = {response: effects(trials, response) for response in RESPONSES}
    seeds = "/".join(map(str, sorted({len(_having(trials, setting)) for setting in cells()})))
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    figure.suptitle(f"Effect of each remedy at {size}, {_epochs(trials)}, n = {seeds}")
    for axes, (response, estimates) in zip(figure.subplots(1, 2, sharey=True), found.items(), strict=True):
        _draw_effects(axes, estimates, f"effect on the\n{RESPONSES[response]} (points)")
    lines = [f"## Effect of each remedy at {size} in {_epochs(trials)}\n", *_factorial_lines(trials, found)]
    return _write(folder, f"factorial-{facts['train_size']}", lines, figure, trials, facts)


def write_sizes(
    trials: Sequence[Trial], remedied: Sequence[Trial], facts: Mapping[str, Any], folder: Path
) -> list[Path]:
    """Write table, figure and numbers of a learning curve, with the worth of the remedies in images.

    Args:
        trials: without remedies, of several sizes.
        remedied: the trials of the factorial; may be empty.
        facts: ``train_size`` of the factorial, and the ``command`` that trained the curve.
        folder: of the files.

    Returns:
        The paths of ``sizes.md``, ``.png`` and ``.json``.
    """
    sizes = sorted({trial.setting["size"] for trial in trials})
    curve = [mean([trial.test_acc for trial in _having(trials, {"size": size})]) for size in sizes]
    worth = [
        (remedies_of(setting), mean([trial.test_acc for trial in same]))
        for setting in cells()
        if (same := _having(remedied, setting))
    ]
    figure = Figure(figsize=(8, 5), layout="constrained")
    _draw_curve(figure.subplots(), sizes, curve, [each for each in worth if each[0]])
    lines = ["## How much data would have done the same\n", *_size_lines(trials, sizes, curve, worth, facts)]
    return _write(folder, "sizes", lines, figure, trials, facts)


def remedy_name(remedies: Sequence[str]) -> str:
    """Return a name of remedies for people, such as ``dropout and weight decay``."""
    *others, last = [{"augment": "augmentation"}.get(name, name.replace("_", " ")) for name in remedies] or ["none"]
    return f"{', '.join(others)} and {last}" if others else last


def _effect_name(effect: Effect) -> str:
    return " x ".join(remedy_name([name]) for name in effect.remedies)


def _having(trials: Sequence[Trial], setting: Mapping[str, Any]) -> list[Trial]:
    return [trial for trial in trials if trial.has(setting)]


def _write(
    folder: Path,
    name: str,
    lines: Sequence[str],
    figure: Figure,
    trials: Sequence[Trial],
    facts: Mapping[str, Any],
) -> list[Path]:
    origin = "; ".join(
        f"{name} {', '.join(sorted({str(each.origin[name]) for each in trials}))}" for name in trials[0].origin
    )
    text = "\n".join([*lines, f"\nOrigin: {origin}.\n", f"```bash\n{facts['command']}\n```\n"])
    numbers = json.dumps({**facts, "trials": [asdict(trial) for trial in trials]}, indent=1) + "\n"
    writers: dict[str, Callable[[Path], object]] = {
        "md": lambda path: path.write_text(text, encoding="utf-8"),
        "png": lambda path: figure.savefig(path, dpi=120, format="png"),
        "json": lambda path: path.write_text(numbers, encoding="utf-8"),
    }
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f".{name}.lock"):  # two workers may end at the same moment
        for ending, write in writers.items():
            replace_file(folder / f"{name}.{ending}", write)
    return [folder / f"{name}.{ending}" for ending in writers]


def _epochs(trials: Sequence[Trial]) -> str:
    least, most = min(trial.epochs for trial in trials), max(trial.epochs for trial in trials)
    return f"{least} to {most} epochs" if least < most else f"{most} epoch{'s' * (most > 1)}"


def _spread(trials: Sequence[Trial], response: str) -> str:
    values = [getattr(trial, response) for trial in trials]
    spread = f" ± {100 * np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
    return f"{100 * np.mean(values):.1f}{spread}{'' if response == 'gap' else ' %'}"


def _factorial_lines(trials: Sequence[Trial], found: Mapping[str, Sequence[Effect]]) -> Iterator[str]:
    yield "| remedies | n | training accuracy | validation accuracy | gap, points | test accuracy |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for setting in cells():
        same = _having(trials, setting)
        numbers = [_spread(same, response) for response in ("train_acc", "val_acc", "gap", "test_acc")]
        yield f"| {remedy_name(remedies_of(setting))} | {len(same)} | {' | '.join(numbers)} |"
    several = all(effect.estimate.known for effect in found["test_acc"])
    yield (
        f"\n{'Mean and standard deviation over seeds' if several else 'One run each'}. Training and validation "
        "accuracy are from the last epoch, training with dropout and augmentation on. The test accuracy is from the "
        "checkpoint with the highest validation accuracy.\n"
    )
    yield "| effect of | on test accuracy, points | on the gap, points |"
    yield "| --- | --- | --- |"
    for accuracy, gap in zip(*found.values(), strict=True):
        yield f"| {_effect_name(accuracy)} | {accuracy.estimate.in_points()} | {gap.estimate.in_points()} |"
    intervals = (
        "The 95 % intervals are Student's, from the spread of seeds within the cells, on one set of training images. "
        "They are not adjusted: if all seven effects are zero, at least one interval excludes zero in "
        f"{1 - CONFIDENCE**7:.0%} of factorials. "
    )
    yield (
        "\nA remedy's effect is the mean with it minus the mean without it, over all settings of the others. An "
        "interaction (x) is half the difference between one's effect with and without the other. "
        f"{intervals if several else ''}The gap also shrinks if training only becomes harder: with dropout or "
        "augmentation, the training accuracy is measured with them on.\n"
    )
    for effect in found["test_acc"]:
        if len(effect.remedies) == 1 or effect.estimate.beyond_noise:
            yield f"- {_sentence(effect)}"
    none, *settings = cells()
    bare = [trial.test_acc for trial in _having(trials, none)]
    for setting in settings:
        remedies, alone = remedies_of(setting), [trial.test_acc for trial in _having(trials, setting)]
        if len(remedies) == 1 and min(len(bare), len(alone)) > 1:
            points = welch_difference(alone, bare).points.in_points()
            yield f"- {remedy_name(remedies).capitalize()} alone, against none: {points} points."


def _sentence(effect: Effect) -> str:
    name, points = _effect_name(effect).capitalize(), effect.estimate.in_points()
    if len(effect.remedies) > 1:
        more = "more" if effect.estimate.value > 0 else "less"
        return f"{name}: together they add {more} than the sum of each alone ({points})."
    text = f"{name} moves test accuracy by {points} points on average over the others"
    if not effect.estimate.known:
        return f"{text}; one seed cannot tell if that is noise."
    return f"{text}, {'more than noise' if effect.estimate.beyond_noise else 'which may be noise'} between seeds."


def _size_lines(
    trials: Sequence[Trial],
    sizes: Sequence[int],
    curve: Sequence[Estimate],
    worth: Sequence[Worth],
    facts: Mapping[str, Any],
) -> Iterator[str]:
    yield "| training images, no remedy | n | test accuracy | gap, points |"
    yield "| --- | --- | --- | --- |"
    for size in sizes:
        same = _having(trials, {"size": size})
        yield f"| {size:,} | {len(same)} | {_spread(same, 'test_acc')} | {_spread(same, 'gap')} |"
    yield ""
    for remedies, accuracy in worth:
        if remedies:
            ends = (accuracy.low, accuracy.high) if accuracy.known else ()
            needed = [images_for(value, sizes, [point.value for point in curve]) for value in (accuracy.value, *ends)]
            name = remedy_name(remedies).capitalize()
            yield f"- {name} at {facts['train_size']:,} images: {_worth(needed, facts['train_size'], sizes)}."
    if worth:
        yield (
            "\nThe number of images is read from the learning curve without remedies at the same test accuracy, on a "
            "logarithmic scale between the sizes. Its range follows from the accuracy's 95 % interval over seeds and "
            "does not include the curve's own spread."
        )
    yield (
        f"\nEvery size was trained for {_epochs(trials)}, so that more images also mean more steps. The validation "
        "images, which choose the epoch, differ between the sizes of the split `overfit`."
    )


def _worth(needed: Sequence[float], train_size: int, sizes: Sequence[int]) -> str:
    """Describe what remedies are worth, with its range if there are several seeds.

    Args:
        needed: images for the accuracy and, if it has an interval, for its ends; see :func:`images_for`.
        train_size: number of images that the remedies were trained with.
        sizes: of the curve.
    """

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
    axes.set_xlabel(label)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


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
    axes.set_xscale("log")
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes], rotation=30)
    axes.minorticks_off()
    highest = max([*values, *(accuracy.value for _, accuracy in worth)])
    axes.set_ylim(90 * min(values), 105 * highest)
    axes.set_xlabel("training images")
    axes.set_ylabel("test accuracy (%)")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=9)
