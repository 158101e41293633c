"""What each remedy bought: effects of a factorial, and how many more images would have done the same."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, combinations, product
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats
from scipy.optimize import isotonic_regression

from overfitting_lab.comparison.charts import RUNS
from overfitting_lab.comparison.statistics import CONFIDENCE, Estimate, mean, welch_difference
from overfitting_lab.runs.files import replace_file

REMEDIES: dict[str, tuple[Any, Any]] = {
    "dropout": (0.0, 0.5),
    "weight_decay": (0.0, 1e-4),
    "augment": ("none", "flip_crop"),
}
RESPONSES = {"test_acc": "test accuracy", "gap": "gap between training and validation"}


@dataclass(frozen=True)
class Trial:
    """What came of one run.

    Attributes:
        setting: its place in the design: the remedies' levels, the seed and, where it varies, the number of images.
        test_acc: test accuracy of the best checkpoint, a fraction of 1.
        train_acc: of the last epoch, with dropout and augmentation on.
        val_acc: of the last epoch.
        gap: ``train_acc`` minus ``val_acc``.
        seconds: that the run took.
        epochs: that it was trained.
        origin: the facts that the run's summary has of data, device, versions and commit.
    """

    setting: Mapping[str, Any]
    test_acc: float
    train_acc: float
    val_acc: float
    gap: float
    seconds: float
    epochs: int
    origin: Mapping[str, Any]

    def has(self, setting: Mapping[str, Any]) -> bool:
        """Whether the run has those settings, whatever the others."""
        return all(self.setting[name] == value for name, value in setting.items())


@dataclass(frozen=True)
class Effect:
    """What one remedy, or several together, do to a response.

    Attributes:
        remedies: one: what it adds on average over all settings of the others. Two and more: half of what one adds more
            where the other is on than where it is off (an interaction; Montgomery 2017, sec. 6.2).
        estimate: a fraction of 1, with Student's interval from the spread of seeds within the cells.
    """

    remedies: tuple[str, ...]
    estimate: Estimate


def cells() -> Iterator[dict[str, Any]]:
    """The settings of the full factorial, all remedies off first."""
    for levels in product(*REMEDIES.values()):
        yield dict(zip(REMEDIES, levels, strict=True))


def remedies_of(setting: Mapping[str, Any]) -> tuple[str, ...]:
    """The remedies that are on."""
    return tuple(name for name, (_, on) in REMEDIES.items() if setting[name] == on)


def called(remedies: Sequence[str]) -> str:
    """Remedies for a person to read."""
    *others, last = [{"augment": "augmentation"}.get(name, name.replace("_", " ")) for name in remedies] or ["none"]
    return f"{', '.join(others)} and {last}" if others else last


def interacting(remedies: Sequence[str]) -> str:
    """One remedy, or the interaction of several, for a person to read."""
    return " x ".join(called([name]) for name in remedies)


def effects(trials: Sequence[Trial], response: str) -> list[Effect]:
    """Main effects and interactions of the full factorial, by least squares on contrasts of -1 and 1.

    Args:
        trials: at least one of every cell.
        response: the name of one of :class:`Trial`'s numbers.

    Raises:
        ValueError: if a cell has no trial.
    """
    missing = [setting for setting in cells() if not any(trial.has(setting) for trial in trials)]
    if missing:
        raise ValueError(f"no trial has {missing[0]}")
    terms = list(chain.from_iterable(combinations(REMEDIES, size) for size in range(len(REMEDIES) + 1)))
    signs = [{name: 1 if name in remedies_of(trial.setting) else -1 for name in REMEDIES} for trial in trials]
    design = np.array([[np.prod([sign[name] for name in term]) for term in terms] for sign in signs], dtype=float)
    values = np.array([getattr(trial, response) for trial in trials])
    inverse = np.linalg.inv(design.T @ design)
    coefficients = inverse @ design.T @ values
    freedom = len(trials) - len(terms)
    half = np.full(len(terms), np.nan)
    if freedom:
        variance = float(((values - design @ coefficients) ** 2).sum() / freedom)
        half = stats.t.ppf((1 + CONFIDENCE) / 2, freedom) * np.sqrt(variance * inverse.diagonal())
    return [
        Effect(term, Estimate(2 * value, 2 * (value - width), 2 * (value + width)))
        for term, value, width in zip(terms, coefficients.tolist(), half.tolist(), strict=True)
        if term
    ]


def images_for(accuracy: float, sizes: Sequence[int], accuracies: Sequence[float]) -> float:
    """How many training images a network without remedies needs for an accuracy.

    Between the sizes of the learning curve, made monotone, it is read off on a logarithmic scale of sizes.

    Args:
        accuracy: a fraction of 1.
        sizes: ascending.
        accuracies: the curve's, one a size.

    Returns:
        The number; NaN below the curve, infinity above it.
    """
    curve = isotonic_regression(accuracies).x
    if accuracy < curve[0]:
        return float("nan")
    if accuracy > curve[-1]:
        return float("inf")
    reached = int(np.searchsorted(curve, accuracy))  # the smallest size with that accuracy or more
    if curve[reached] == accuracy:
        return float(sizes[reached])
    around = slice(reached - 1, reached + 1)
    return float(np.exp(np.interp(accuracy, curve[around], np.log(sizes[around]))))


def write_factorial(trials: Sequence[Trial], facts: Mapping[str, Any], folder: Path) -> list[Path]:
    """Writes a factorial's table, figure and numbers.

    Args:
        trials: at least one of every cell, of one training-set size.
        facts: ``train_size``, and the ``command`` that made them.
        folder: where to.

    Returns:
        The files: ``factorial-SIZE.md``, ``.png`` and ``.json``.
    """
    found = {response: effects(trials, response) for response in RESPONSES}
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    figure.suptitle(
        f"What each remedy does at {facts['train_size']:,} training images, {_epochs(trials)}, n = {_seeds(trials)}"
    )
    for axes, (response, estimates) in zip(figure.subplots(1, 2, sharey=True), found.items(), strict=True):
        _draw_effects(axes, estimates, f"effect on the\n{RESPONSES[response]} (points)")
    text = "\n".join(_factorial_lines(trials, found, facts)) + "\n"
    return _write(folder, f"factorial-{facts['train_size']}", text, figure, trials, facts)


def write_sizes(
    trials: Sequence[Trial], remedied: Sequence[Trial], facts: Mapping[str, Any], folder: Path
) -> list[Path]:
    """Writes a learning curve's table, figure and numbers, with what the remedies are worth in images.

    Args:
        trials: without remedies, of several sizes.
        remedied: those of the factorial; empty where it was not made.
        facts: ``train_size`` of the factorial, and the ``command`` that made the curve.
        folder: where to.

    Returns:
        The files: ``sizes.md``, ``.png`` and ``.json``.
    """
    sizes = sorted({trial.setting["size"] for trial in trials})
    curve = [mean([trial.test_acc for trial in trials if trial.has({"size": size})]) for size in sizes]
    worth = [
        (setting, mean([trial.test_acc for trial in remedied if trial.has(setting)]))
        for setting in cells()
        if any(trial.has(setting) for trial in remedied)
    ]
    figure = Figure(figsize=(8, 5), layout="constrained")
    _draw_curve(figure.subplots(), sizes, curve, [pair for pair in worth if remedies_of(pair[0])])
    text = "\n".join(_size_lines(trials, sizes, curve, worth, facts)) + "\n"
    return _write(folder, "sizes", text, figure, trials, facts)


def _write(
    folder: Path, name: str, text: str, figure: Figure, trials: Sequence[Trial], facts: Mapping[str, Any]
) -> list[Path]:
    numbers = json.dumps({**facts, "trials": [asdict(trial) for trial in trials]}, indent=1) + "\n"
    writers: dict[str, Callable[[Path], object]] = {
        "md": lambda path: path.write_text(text, encoding="utf-8"),
        "png": lambda path: figure.savefig(path, dpi=120, format="png"),
        "json": lambda path: path.write_text(numbers),
    }
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f".{name}.lock"):  # two workers may end at the same moment
        for ending, write in writers.items():
            replace_file(folder / f"{name}.{ending}", write)
    return [folder / f"{name}.{ending}" for ending in writers]


def _seeds(trials: Sequence[Trial]) -> str:
    numbers = sorted({sum(trial.has(setting) for trial in trials) for setting in cells()})
    return "/".join(map(str, numbers))


def _epochs(trials: Sequence[Trial]) -> str:
    numbers = sorted({trial.epochs for trial in trials})
    if len(numbers) > 1:
        return f"{numbers[0]} to {numbers[-1]} epochs"
    return f"{numbers[0]} epoch{'s' * (numbers[0] > 1)}"


def _spread(values: Sequence[float], unit: str = " %") -> str:
    spread = f" ± {100 * np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
    return f"{100 * np.mean(values):.1f}{spread}{unit}"


def _factorial_lines(
    trials: Sequence[Trial], found: Mapping[str, Sequence[Effect]], facts: Mapping[str, Any]
) -> Iterator[str]:
    yield f"## What each remedy does at {facts['train_size']:,} training images in {_epochs(trials)}\n"
    yield "| remedies | n | training accuracy | validation accuracy | gap, points | test accuracy |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for setting in cells():
        mine = [trial for trial in trials if trial.has(setting)]
        numbers = (
            _spread([getattr(trial, key) for trial in mine], "" if key == "gap" else " %")
            for key in ("train_acc", "val_acc", "gap", "test_acc")
        )
        yield f"| {called(remedies_of(setting))} | {len(mine)} | {' | '.join(numbers)} |"
    several = all(effect.estimate.known for effect in found["test_acc"])
    yield (
        f"\n{'Mean and standard deviation over seeds' if several else 'One run each'}. Training and validation are "
        "those of the last epoch, training with dropout and augmentation on; the test is that of the best checkpoint "
        "by validation accuracy.\n"
    )
    yield "| effect of | on test accuracy, points | on the gap, points |"
    yield "| --- | --- | --- |"
    for accuracy, gap in zip(*found.values(), strict=True):
        yield f"| {interacting(accuracy.remedies)} | {accuracy.estimate.in_points()} | {gap.estimate.in_points()} |"
    intervals = (
        "95 % intervals by Student's t from the spread of seeds within the cells, on one set of training images. They "
        "are each effect's own: of seven that are nothing, one or more lies beyond its interval in "
        f"{1 - CONFIDENCE**7:.0%} of factorials. "
    )
    yield (
        "\nA remedy's effect is the mean with it minus the mean without it, over all settings of the others; an "
        "interaction (x) is half of what one adds more with the other than without. "
        f"{intervals if several else ''}The gap shrinks also where training is only made harder: with dropout or "
        "augmentation on, the training accuracy is taken with them on.\n"
    )
    for effect in found["test_acc"]:
        if len(effect.remedies) == 1 or effect.estimate.beyond_noise:
            yield f"- {_sentence(effect)}"
    yield from _alone(trials)
    yield ""
    yield from _origin(trials, facts)


def _sentence(effect: Effect) -> str:
    points = effect.estimate.in_points()
    if len(effect.remedies) > 1:
        more = "more" if effect.estimate.value > 0 else "less"
        return f"{interacting(effect.remedies).capitalize()}: together they do {more} than each for itself ({points})."
    text = f"{called(effect.remedies).capitalize()} moves test accuracy by {points} points on average over the others"
    if not effect.estimate.known:
        return f"{text}; with one seed there is no telling whether that is noise."
    return f"{text}: {'more than seeds do' if effect.estimate.beyond_noise else 'which seeds alone may do'}."


def _alone(trials: Sequence[Trial]) -> Iterator[str]:
    """What each remedy does where it is the only one, against none, over seeds."""
    none, *settings = cells()
    bare = [trial.test_acc for trial in trials if trial.has(none)]
    for setting in settings:
        remedies = remedies_of(setting)
        mine = [trial.test_acc for trial in trials if trial.has(setting)]
        if len(remedies) == 1 and min(len(bare), len(mine)) > 1:
            found = welch_difference(mine, bare)
            yield f"- {called(remedies).capitalize()} alone, against none: {found.points.in_points()} points."


def _size_lines(
    trials: Sequence[Trial],
    sizes: Sequence[int],
    curve: Sequence[Estimate],
    worth: Sequence[tuple[Mapping[str, Any], Estimate]],
    facts: Mapping[str, Any],
) -> Iterator[str]:
    yield "## How much data would have done the same\n"
    yield "| training images, no remedy | n | test accuracy | gap, points |"
    yield "| --- | --- | --- | --- |"
    for size in sizes:
        mine = [trial for trial in trials if trial.has({"size": size})]
        accuracies, gaps = ([getattr(trial, key) for trial in mine] for key in ("test_acc", "gap"))
        yield f"| {size:,} | {len(mine)} | {_spread(accuracies)} | {_spread(gaps, '')} |"
    yield ""
    accuracies = [point.value for point in curve]
    for setting, accuracy in worth:
        if remedies_of(setting):
            ends = (accuracy.low, accuracy.high) if accuracy.known else ()
            needed = [images_for(value, sizes, accuracies) for value in (accuracy.value, *ends)]
            name = called(remedies_of(setting)).capitalize()
            yield f"- {name} at {facts['train_size']:,} images: {_worth(needed, facts['train_size'], sizes)}."
    if worth:
        yield (
            "\nThe number of images is where the learning curve without remedies reaches the same test accuracy, "
            "between the sizes on a logarithmic scale; its range is that of the accuracy's 95 % interval over seeds, "
            "and leaves the curve's own spread out."
        )
    yield (
        f"\nEvery size was trained for {_epochs(trials)}, so that more images are more steps as well; the validation "
        "images, which choose the epoch, are other ones at each size of the split `overfit`."
    )
    yield ""
    yield from _origin(trials, facts)


def _worth(needed: Sequence[float], train_size: int, sizes: Sequence[int]) -> str:
    """In words: the estimate and, where there are several seeds, its range.

    Args:
        needed: images for the accuracy and, where it has an interval, for its ends; see :func:`images_for`.
        train_size: that the remedies had.
        sizes: of the curve.
    """
    value, *ends = needed

    def more(images: float) -> str:
        if np.isnan(images):
            return f"fewer than {sizes[0]:,} images in all"
        if np.isinf(images):
            return f"more than {sizes[-1]:,} images in all"
        return f"{images - train_size:+,.0f} images"

    text = more(value) if not np.isfinite(value) else f"as much as {more(value)}"
    return f"worth {text} ({' to '.join(map(more, ends))})" if ends else f"worth {text}"


def _origin(trials: Sequence[Trial], facts: Mapping[str, Any]) -> Iterator[str]:
    yield (
        "Where it is from: "
        + "; ".join(
            f"{name} {', '.join(sorted({str(trial.origin[name]) for trial in trials}))}" for name in trials[0].origin
        )
        + ".\n"
    )
    yield f"```bash\n{facts['command']}\n```"


def _draw_effects(axes: Axes, found: Sequence[Effect], label: str) -> None:
    for place, effect in enumerate(found):
        value, low, high = (
            100 * number for number in (effect.estimate.value, effect.estimate.low, effect.estimate.high)
        )
        width = [[value - low], [high - value]] if effect.estimate.known else None
        main = len(effect.remedies) == 1
        axes.errorbar(value, place, xerr=width, fmt="o", color=RUNS[0] if main else "grey", capsize=4)
        axes.annotate(f"{value:+.1f}", (value, place), (0, 7), textcoords="offset points", ha="center", fontsize=9)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(found)), [interacting(effect.remedies) for effect in found])
    axes.set_ylim(len(found) - 0.5, -0.7)
    axes.set_xlabel(label)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_curve(
    axes: Axes, sizes: Sequence[int], curve: Sequence[Estimate], worth: Sequence[tuple[Mapping[str, Any], Estimate]]
) -> None:
    accuracies = [100 * point.value for point in curve]
    width = [
        [100 * (point.value - (point.low if point.known else point.value)) for point in curve],
        [100 * ((point.high if point.known else point.value) - point.value) for point in curve],
    ]
    axes.errorbar(sizes, accuracies, yerr=width, fmt="o-", color="black", capsize=4, label="no remedy")
    for place, (setting, accuracy) in enumerate(worth):
        needed = images_for(accuracy.value, sizes, [point.value for point in curve])
        end = min(max(needed, sizes[0]), sizes[-1]) if np.isfinite(needed) else sizes[-1]
        colour, name = RUNS[place % len(RUNS)], called(remedies_of(setting))
        axes.plot(
            [sizes[0], end], [100 * accuracy.value] * 2, "-" if place < len(RUNS) else "--", color=colour, label=name
        )
        if np.isfinite(needed):
            axes.plot([end, end], [0, 100 * accuracy.value], ":", color=colour, linewidth=1)
    axes.set_xscale("log")
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes], rotation=30)
    axes.minorticks_off()
    axes.set_ylim(0.9 * min(accuracies), 1.05 * max([*accuracies, *(100 * accuracy.value for _, accuracy in worth)]))
    axes.set_xlabel("training images")
    axes.set_ylabel("test accuracy (%)")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=9)
