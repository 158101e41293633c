"""Pages of an ablation: its results as tables, figures and numbers."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from matplotlib.figure import Figure

from overfitting_lab.comparison.report import render
from overfitting_lab.comparison.statistics import CONFIDENCE, Estimate
from overfitting_lab.runs.figures import save_figure
from overfitting_lab.runs.files import write_text
from overfitting_lab.runs.notes import attempt
from overfitting_lab.sweeps.charts import draw_curve, draw_estimates, draw_worth
from overfitting_lab.sweeps.designs import Cell, Design
from overfitting_lab.sweeps.effects import CellMeans, Effect, by_cell, effects, images_for, trials_of
from overfitting_lab.sweeps.factors import ON, SIZE
from overfitting_lab.sweeps.trial import Trial

RESPONSES = {"test_acc": "test accuracy", "gap": "generalization gap", "calibration_error": "calibration error"}
NAMED = 4  # factors in the name of a page
Content = dict[str, Any]
Facts = Mapping[str, Any]
Other = tuple[Design, Sequence[Trial]]


def page_name(design: Design, size: int | None, *, named: bool) -> str:
    """Return the name of a page's files, with the number of training images, and with the factors if ``named``."""
    names = [factor.name.replace("/", "-") for factor in design.factors if named]
    more = [f"{len(names) - NAMED + 1}_more"] if len(names) > NAMED else []
    return "-".join([design.kind, *(names[: NAMED - 1] + more if more else names), *([str(size)] if size else [])])


def write_page(
    design: Design, trials: Sequence[Trial], facts: Facts, path: Path, remedied: Other | None = None
) -> list[Path]:
    """Write table, figure and numbers of a design: ``path`` with the endings ``.md``, ``.png`` and ``.json``.

    Args:
        design: its cells all have trials.
        trials: of the design.
        facts: ``command``, and ``train_size`` or ``None``. Beside ``remedied`` it is the number of its training images.
        path: of the files, without an ending.
        remedied: a design of remedies and its trials, whose worth in training images is read from a learning curve.

    Raises:
        ValueError: if a cell has no trial.
    """
    groups = by_cell(design, trials)
    responses = [response for response in RESPONSES if all(getattr(trial, response) is not None for trial in trials)]
    means = {response: CellMeans(groups, response) for response in responses}
    runs = sorted({len(group) for group in groups})
    by_size = any(factor.key == SIZE.key for factor in design.factors)
    content: Content = {
        "design": design,
        "responses": [RESPONSES[response] for response in responses],
        "size": f"{facts['train_size']:,} training images" if facts["train_size"] and not by_size else "",
        "epochs": _epochs(trials),
        "runs": "/".join(map(str, runs)),
        "several": runs[-1] > 1,
        "subsets": len({trial.subset for trial in trials}),
        "probed": {trial.gap_instrument for trial in trials} == {"probe"},
        "levels": [(factor_name(factor.name), ", ".join(map(_level, factor.levels))) for factor in design.factors],
        "by_size": by_size,
        "origin": _origin(trials),
        **facts,
    }
    at = f" at {content['size']}" if content["size"] else ""
    figure = Figure(layout="constrained")
    figure.suptitle(f"{design.title[0].upper()}{design.title[1:]}{at}, {content['epochs']}, n = {content['runs']}")
    template, more = _PAGES[design.kind](design, groups, means, figure)
    if remedied is not None:
        more["worth"] = _worth(design, means["test_acc"], remedied, facts["train_size"], figure)
    text = render(Path(__file__).with_name("templates") / template, {**content, **more})
    numbers = json.dumps({**facts, "trials": [asdict(trial) for trial in trials]}, indent=1) + "\n"
    paths = [path.with_name(f"{path.name}.{ending}") for ending in ("md", "png", "json")]
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):  # two workers may end at the same moment
        write_text(paths[0], text)
        with attempt(paths[1].name):
            save_figure(paths[1], figure)
        write_text(paths[2], numbers)
    return paths


Groups = Sequence[Sequence[Trial]]
Means = Mapping[str, CellMeans]  # by response


def _factorial(design: Design, groups: Groups, means: Means, figure: Figure) -> tuple[str, Content]:
    """Return main effects and interactions of factors of two levels, of all combinations or of a fraction."""
    trials = [trial for group in groups for trial in group]
    found = [effects(design, trials, response) for response in means]
    names = [_effect_name(effect) for effect in found[0]]
    mains = sum(effect.main for effect in found[0])
    estimates = [[effect.estimate for effect in each] for each in found]
    _draw(figure, names, dict(zip(means, estimates, strict=True)), mains, "effect on the\n{} (points)")
    changed = [design.changed(cell) for cell in design.cells]
    return "factorial.md", {
        "cells": [
            (remedy_name(names), *_means(group, "train_acc", "val_acc", *means))
            for names, group in zip(changed, groups, strict=True)
        ],
        "several": all(estimate.known for estimate in estimates[0]),
        "effects": [
            (name, effect, each)
            for name, effect, each in zip(names, found[0], zip(*estimates, strict=True), strict=True)
        ],
        "excluding": f"{1 - CONFIDENCE ** len(names):.0%}",
        "alone": [
            (remedy_name(names), difference)
            for place, names in enumerate(changed)
            if len(names) == 1 and (difference := means["test_acc"].against_first(place)).known
        ],
    }


def _levels(design: Design, groups: Groups, means: Means, figure: Figure) -> tuple[str, Content]:
    """Return the mean at each level of each factor over the levels of the others, and its difference from the first."""
    rows, differences = [], {response: [] for response in means}  # type: ignore[var-annotated]
    names = []
    for factor in design.factors:
        at = [[cell[factor.name] == level for cell in design.cells] for level in factor.levels]
        weights = [np.array(cells) / sum(cells) for cells in at]
        for level, here in zip(factor.levels, weights, strict=True):
            row = []
            for response, each in means.items():
                mean = each.mean(here.tolist())
                row.append(f"{100 * mean.value:.1f}{' %' if response.endswith('acc') else ''}{_interval(mean)}")
                difference = each.contrast((here - weights[0]).tolist())
                row.append("" if level == factor.levels[0] else difference.in_points())
                if level != factor.levels[0]:
                    differences[response].append(difference)
            rows.append((factor_name(factor.name), _level(level), *row))
        names += [f"{factor_name(factor.name)}: {_level(level)}" for level in factor.levels[1:]]
    _draw(figure, names, differences, len(names), "difference in\n{} (points)")
    return "levels.md", {
        "cells": [
            (*map(_level, cell.values()), *_means(group, "train_acc", "val_acc", *means))
            for cell, group in zip(design.cells, groups, strict=True)
        ],
        "rows": rows,
        "excluding": f"{1 - CONFIDENCE ** len(names):.0%}",
        "comparisons": len(names),
    }


def _one_at_a_time(design: Design, groups: Groups, means: Means, figure: Figure) -> tuple[str, Content]:
    """Return each level that differs from the first ones alone, best test accuracy first."""
    accuracy = means["test_acc"].against_first
    order = sorted(range(1, len(groups)), key=lambda place: -accuracy(place).value)
    names = {place: _cell_name(design, design.cells[place]) for place in order}
    found = {response: [each.against_first(place) for place in order] for response, each in means.items()}
    _draw(figure, [*names.values()], found, len(order), "difference in\n{} (points)")
    return "one_at_a_time.md", {
        "first": ("none", *_means(groups[0], *means)),
        "rows": [
            (names[place], *_means(groups[place], *means), *(each[row].in_points() for each in found.values()))
            for row, place in enumerate(order)
        ],
        "several": all(estimate.known for estimate in found["test_acc"]),
        "excluding": f"{1 - CONFIDENCE ** len(order):.0%}",
        "comparisons": len(order),
    }


def _curve(design: Design, groups: Groups, means: Means, figure: Figure) -> tuple[str, Content]:
    """Return the responses over the levels of a factor."""
    (factor,) = design.factors
    name = "training images" if factor.key == SIZE.key else factor_name(factor.name)
    order = np.argsort(factor.levels).tolist()
    figure.set_size_inches(6 * len(means), 4.8)
    for axes, (response, each) in zip(figure.subplots(1, len(means), squeeze=False)[0], means.items(), strict=True):
        unit = "%" if response.endswith("acc") else "points"
        points = [each.cell_mean(place) for place in order]
        draw_curve(axes, [factor.levels[place] for place in order], points, f"{RESPONSES[response]} ({unit})", name)
    return "curve.md", {
        "name": name,
        "rows": [
            (
                f"{factor.levels[place]:,}",
                *_means(groups[place], *means, intervals=[each.cell_mean(place) for each in means.values()]),
            )
            for place in order
        ],
        "worth": None,
    }


_PAGES = {
    "factorial": _factorial, "fraction": _factorial, "levels": _levels, "one_at_a_time": _one_at_a_time, "curve": _curve
}  # fmt: skip


def _worth(design: Design, means: CellMeans, remedied: Other, train_size: int, figure: Figure) -> list[Any]:
    """Return what each combination of remedies is worth in training images, and draw it."""
    sizes = design.factors[0].levels
    curve = [means.cell_mean(place) for place in range(len(sizes))]
    groups = [(remedied[0].changed(cell), trials_of(cell, remedied[1])) for cell in remedied[0].cells]
    worth = [
        (remedy_name(names), CellMeans([same], "test_acc").cell_mean(0)) for names, same in groups if names and same
    ]
    draw_worth(figure.axes[0], sizes, curve, worth)

    def more(accuracy: float) -> str:
        images = images_for(accuracy, sizes, [point.value for point in curve])
        if np.isnan(images):
            return f"fewer than {sizes[0]:,} images in all"
        if np.isinf(images):
            return f"more than {sizes[-1]:,} images in all"
        return f"{images - train_size:+,.0f} images"

    return [
        (name, more(found.value), [more(end) for end in (found.low, found.high) if found.known])
        for name, found in worth
    ]


def factor_name(name: str) -> str:
    """Return a readable name of a factor, such as ``weight decay``."""
    return {"augment": "augmentation"}.get(name, name.replace("_", " "))


def remedy_name(remedies: Sequence[str]) -> str:
    """Return a readable name of the factors that are not at their first level, such as ``dropout and weight decay``."""
    *others, last = map(factor_name, remedies or ["none"])
    return f"{', '.join(others)} and {last}" if others else last


def _effect_name(effect: Effect) -> str:
    return " = ".join(" x ".join(map(factor_name, term)) for term in effect.terms)


def _cell_name(design: Design, cell: Cell) -> str:
    return ", ".join(
        f"{factor_name(name)} {_level(cell[name])}".removesuffix(f" {ON}") for name in design.changed(cell)
    )


def _level(level: Any) -> str:
    return f"{level:,}" if isinstance(level, int) and not isinstance(level, bool) else str(level)


def _origin(trials: Sequence[Trial]) -> str:
    return "; ".join(
        f"{key} {', '.join(sorted({str(each.origin[key]) for each in trials}))}" for key in trials[0].origin
    )


def _epochs(trials: Sequence[Trial]) -> str:
    least, most = min(trial.epochs for trial in trials), max(trial.epochs for trial in trials)
    return f"{least} to {most} epochs" if least < most else f"{most} epoch{'s' * (most > 1)}"


def _means(trials: Sequence[Trial], *responses: str, intervals: Sequence[Estimate] = ()) -> list[str]:
    """Return the number of trials, then mean and standard deviation of each response, and the interval if given."""
    cells = [str(len(trials))]
    for response, interval in zip_longest(responses, intervals):
        values = [getattr(trial, response) for trial in trials]
        spread = f" ± {100 * np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
        ends = _interval(interval) if interval else ""
        cells.append(f"{100 * np.mean(values):.1f}{spread}{' %' if response.endswith('acc') else ''}{ends}")
    return cells


def _interval(estimate: Estimate) -> str:
    return f" ({100 * estimate.low:.1f} to {100 * estimate.high:.1f})" if estimate.known else ""


def _draw(figure: Figure, names: Sequence[str], found: Mapping[str, Any], highlighted: int, label: str) -> None:
    """Draw a panel of estimates for each response."""
    figure.set_size_inches(5.5 * len(found), max(4.2, 1.2 + 0.45 * len(names)))
    panels = figure.subplots(1, len(found), sharey=True, squeeze=False)[0]
    for axes, (response, estimates) in zip(panels, found.items(), strict=True):
        draw_estimates(axes, names, estimates, highlighted, label.format(RESPONSES[response]))
