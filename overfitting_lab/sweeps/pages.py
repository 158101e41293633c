"""Pages of an ablation: its results as tables, figures and numbers."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock
from matplotlib.figure import Figure

from overfitting_lab.comparison.statistics import CONFIDENCE, Estimate, mean_cell
from overfitting_lab.runs.figures import save_figure
from overfitting_lab.runs.files import numbered, write_text
from overfitting_lab.runs.notes import attempt
from overfitting_lab.runs.templates import render
from overfitting_lab.sweeps.charts import draw_curve, draw_estimates, draw_worth
from overfitting_lab.sweeps.designs import Design
from overfitting_lab.sweeps.effects import CellMeans, by_cell, effects, images_for, trials_of
from overfitting_lab.sweeps.factors import SEED, SIZE
from overfitting_lab.sweeps.names import cell_name, effect_name, factor_name, level_name, remedy_name
from overfitting_lab.sweeps.trial import Trial, with_one_gap

RESPONSES = {"test_acc": "test accuracy", "gap": "generalization gap", "calibration_error": "calibration error"}
Content = dict[str, Any]
Facts = Mapping[str, Any]
Groups = Sequence[Sequence[Trial]]  # trials of each cell
Means = Mapping[str, CellMeans]  # by response


class Page(NamedTuple):
    """The results of a design as text, figure and numbers."""

    text: str  # Markdown
    figure: Figure
    numbers: str  # JSON

    def write(self, path: Path) -> list[Path]:
        """Write the page: ``path``, which has no ending, with the endings ``.md``, ``.png`` and ``.json``.

        Return what was written.
        """
        text, picture, numbers = (path.with_name(f"{path.name}.{ending}") for ending in ("md", "png", "json"))
        write_text(text, self.text)
        written = [text]
        with attempt(picture.name):
            save_figure(picture, self.figure)
            written.append(picture)
        write_text(numbers, self.numbers)
        return [*written, numbers]


def page_of(
    design: Design, trials: Sequence[Trial], facts: Facts, remedied: tuple[Design, Sequence[Trial]] | None = None
) -> Page:
    """Return the page of a design.

    Args:
        design: its cells all have trials.
        trials: of the design.
        facts: ``study``, the study's name, ``command``, and ``train_size``, the number of training images; ``None`` if
            it varies. A learning curve has the number of the ``remedied`` trials.
        remedied: beside a learning curve, a design of remedies and its trials. The page tells their worth in images.

    Raises:
        ValueError: if a cell has no trial.
    """
    trials = with_one_gap(trials)
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
        "levels": [(factor_name(factor.name), ", ".join(map(level_name, factor.levels))) for factor in design.factors],
        "by_size": by_size,
        "chosen": _chosen(design, groups),
        "equal": _equal(design, groups),
        "origin": _origin(trials),
        **facts,
    }
    at = f" at {content['size']}" if content["size"] else ""
    figure = Figure(layout="constrained")
    figure.suptitle(f"{design.title[0].upper()}{design.title[1:]}{at}, {content['epochs']}, n = {content['runs']}")
    template, more = _PAGES[design.kind](design, groups, means, figure)
    if remedied is not None:
        more["worth"] = _worth(design, means["test_acc"], remedied, figure)
    text = render(Path(__file__).with_name("templates") / template, {**content, **more})
    numbers = {**facts, "trials": [asdict(trial) for trial in chain.from_iterable(groups)]}
    return Page(text, figure, json.dumps(numbers, indent=1) + "\n")


def write_page(
    design: Design,
    trials: Sequence[Trial],
    facts: Facts,
    path: Path,
    remedied: tuple[Design, Sequence[Trial]] | None = None,
) -> list[Path]:
    """Write the page of a design. See :func:`page_of` and :meth:`Page.write`.

    If the page at ``path`` is of another study, ``PATH-2`` is written, and so on.
    """
    page = page_of(design, trials, facts, remedied)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):  # two workers may end at the same moment
        return page.write(_without_other_study(path, facts.get("study")))


def _without_other_study(path: Path, study: str | None) -> Path:
    """Return the path, or the first of ``PATH-2``, ``PATH-3``, ... if the page there is of another study."""

    def is_free(page: Path) -> bool:
        numbers = page.with_name(f"{page.name}.json")
        return not numbers.exists() or json.loads(numbers.read_text(encoding="utf-8")).get("study") == study

    return next(filter(is_free, numbered(path)))


def _factorial(design: Design, groups: Groups, means: Means, figure: Figure) -> tuple[str, Content]:
    """Return the template and its content: main effects and interactions of factors of two levels."""
    trials = [*chain.from_iterable(groups)]
    found = [effects(design, trials, response) for response in means]
    names = [effect_name(effect.terms) for effect in found[0]]
    mains = sum(effect.main for effect in found[0])
    estimates = [[effect.estimate for effect in each] for each in found]
    _draw(figure, names, dict(zip(means, estimates, strict=True)), mains, "effect on the\n{} (points)")
    changed = [design.changed(cell) for cell in design.cells]
    return "factorial.md", {
        "cells": [
            (remedy_name(names), *_means(group, "train_acc", "val_acc", *means))
            for names, group in zip(changed, groups, strict=True)
        ],
        "known": all(estimate.known for estimate in estimates[0]),
        "effects": [
            (name, effect, each)
            for name, effect, each in zip(names, found[0], zip(*estimates, strict=True), strict=True)
        ],
        **_unadjusted(len(names)),
        "alone": [
            (remedy_name(names), difference)
            for place, names in enumerate(changed)
            if len(names) == 1 and (difference := means["test_acc"].against_first(place)).known
        ],
    }


def _levels(design: Design, groups: Groups, means: Means, figure: Figure) -> tuple[str, Content]:
    """Return the template and its content: means of each level over the other factors, and their differences."""
    differences: dict[str, list[Estimate]] = {response: [] for response in means}
    rows, names = [], []
    for factor in design.factors:
        at = [[cell[factor.name] == level for cell in design.cells] for level in factor.levels]
        weights = [np.array(cells) / sum(cells) for cells in at]
        for level, here in zip(factor.levels, weights, strict=True):
            row, is_first = [], level == factor.levels[0]
            for response, each in means.items():
                mean, difference = each.mean(here.tolist()), each.contrast((here - weights[0]).tolist())
                row += [_cell(response, [mean.value], mean), "" if is_first else difference.in_points()]
                differences[response] += [] if is_first else [difference]
            rows.append((factor_name(factor.name), level_name(level), *row))
        names += [f"{factor_name(factor.name)}: {level_name(level)}" for level in factor.levels[1:]]
    _draw(figure, names, differences, len(names), "difference in\n{} (points)")
    return "levels.md", {
        "cells": [
            (*map(level_name, cell.values()), *_means(group, "train_acc", "val_acc", *means))
            for cell, group in zip(design.cells, groups, strict=True)
        ],
        "rows": rows,
        "known": all(difference.known for difference in differences["test_acc"]),
        **_unadjusted(len(names)),
    }


def _one_at_a_time(design: Design, groups: Groups, means: Means, figure: Figure) -> tuple[str, Content]:
    """Return the template and its content: each level alone against the first levels, best test accuracy first."""
    accuracy = means["test_acc"].against_first
    order = sorted(range(1, len(groups)), key=lambda place: -accuracy(place).value)
    names = {place: cell_name(design, design.cells[place]) for place in order}
    found = {response: [each.against_first(place) for place in order] for response, each in means.items()}
    _draw(figure, [*names.values()], found, len(order), "difference in\n{} (points)")
    return "one_at_a_time.md", {
        "first": ("none", *_means(groups[0], *means)),
        "rows": [
            (names[place], *_means(groups[place], *means), *(each[row].in_points() for each in found.values()))
            for row, place in enumerate(order)
        ],
        "replaced": [
            (names[place], remedy_name([factor.name for factor in replaced]))
            for place in order
            if (replaced := design.replaced(design.cells[place]))
        ],
        "known": all(estimate.known for estimate in found["test_acc"]),
        **_unadjusted(len(order)),
    }


def _curve(design: Design, groups: Groups, means: Means, figure: Figure) -> tuple[str, Content]:
    """Return the template and its content: the responses over the levels of a factor."""
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


def _worth(design: Design, means: CellMeans, remedied: tuple[Design, Sequence[Trial]], figure: Figure) -> list[Any]:
    """Return how many training images would do as well as each combination of remedies, and draw it."""
    sizes = design.factors[0].levels
    curve = [means.cell_mean(place) for place in range(len(sizes))]
    groups = [(remedied[0].changed(cell), trials_of(cell, remedied[1])) for cell in remedied[0].cells]
    worth = [
        (remedy_name(names), CellMeans([same], "test_acc").cell_mean(0)) for names, same in groups if names and same
    ]
    draw_worth(figure.axes[0], sizes, curve, worth)

    def needed(accuracy: float) -> str:
        images = images_for(accuracy, sizes, [point.value for point in curve])
        if np.isnan(images):
            return f"fewer than {sizes[0]:,}"
        if np.isinf(images):
            return f"more than {sizes[-1]:,}"
        return f"{images:,.0f}"

    return [
        (name, needed(found.value), [needed(end) for end in (found.low, found.high) if found.known])
        for name, found in worth
    ]


def _unadjusted(comparisons: int) -> Content:
    """Return a number of intervals, and the chance that one of them excludes zero although all differences are zero."""
    return {"comparisons": comparisons, "excluding": f"{100 * (1 - CONFIDENCE**comparisons):.0f} %"}


def _chosen(design: Design, groups: Groups) -> str:
    """Return sentences about the networks that were tested. They name the cells that differ from the others."""
    by_loss = [group[0].monitor == "val_loss" for group in groups]
    values = {"val_loss": "lowest validation loss", "val_acc": "highest validation accuracy"}
    monitor = "val_acc" if any(by_loss) and not all(by_loss) else groups[0][0].monitor
    sentence = f"The test accuracy is from the checkpoint with the {values.get(monitor, f'best {monitor}')}"
    if any(by_loss) and not all(by_loss):
        sentence += f", but with the lowest validation loss in the cells with: {_cells(design, by_loss)}"
    averaged = [sum(bool(trial.averaged) for trial in group) for group in groups]
    whole = [number == len(group) for number, group in zip(averaged, groups, strict=True)]
    if all(whole):
        sentence += ". The tested network is an average of weights"
    elif any(whole):
        sentence += f". The tested network is an average of weights in the cells with: {_cells(design, whole)}"
    for cell, number, group in zip(design.cells, averaged, groups, strict=True):
        if 0 < number < len(group):
            name = cell_name(design, cell) or "none"
            runs = f"{number} of {len(group)} runs"
            sentence += f". With {name}, it is one in {runs}: the others chose an epoch before the average began"
    return f"{sentence}."


def _equal(design: Design, groups: Groups) -> list[str]:
    """Name cells that have the same results in every run, as if they had the same settings."""
    names: dict[tuple[Any, ...], list[str]] = {}
    for cell, group in zip(design.cells, groups, strict=True):
        runs = [(each.subset, each.setting.get(SEED.name, 0), each.test_acc, each.calibration_error) for each in group]
        if all(None not in run for run in runs):
            names.setdefault(tuple(sorted(runs)), []).append(cell_name(design, cell) or "none")
    return [" and ".join(f"`{cell}`" for cell in cells) for cells in names.values() if len(cells) > 1]


def _cells(design: Design, chosen: Sequence[bool]) -> str:
    """Return names for the chosen cells: the levels that they alone have, or the cells one by one."""
    names = [
        f"{factor_name(factor.name)} {level_name(level)}"
        for factor in design.factors
        for level in factor.levels
        if [cell.get(factor.name) == level for cell in design.cells] == list(chosen)
    ] or [cell_name(design, cell) or "none" for cell, wanted in zip(design.cells, chosen, strict=True) if wanted]
    return "; ".join(names)


def _origin(trials: Sequence[Trial]) -> str:
    return "; ".join(
        f"{key} {', '.join(sorted({str(each.origin[key]) for each in trials}))}" for key in trials[0].origin
    )


def _epochs(trials: Sequence[Trial]) -> str:
    least, most = min(trial.epochs for trial in trials), max(trial.epochs for trial in trials)
    return f"{least} to {most} epochs" if least < most else f"{most} epoch{'s' * (most > 1)}"


def _means(trials: Sequence[Trial], *responses: str, intervals: Sequence[Estimate] = ()) -> list[str]:
    """Return the number of trials, then mean and standard deviation of each response, with its interval if given."""
    cells = [str(len(trials))]
    for response, interval in zip_longest(responses, intervals):
        cells.append(_cell(response, [getattr(trial, response) for trial in trials], interval))
    return cells


def _cell(response: str, values: Sequence[float], interval: Estimate | None = None) -> str:
    """Return the mean of a response in hundredths, with the interval if it is known."""
    ends = f" ({100 * interval.low:.1f} to {100 * interval.high:.1f})" if interval and interval.known else ""
    return f"{mean_cell(values, unit=' %' if response.endswith('acc') else '')}{ends}"


def _draw(figure: Figure, names: Sequence[str], found: Mapping[str, Any], highlighted: int, label: str) -> None:
    """Draw a panel of estimates for each response."""
    figure.set_size_inches(5.5 * len(found), max(4.2, 1.2 + 0.45 * len(names)))
    panels = figure.subplots(1, len(found), sharey=True, squeeze=False)[0]
    for axes, (response, estimates) in zip(panels, found.items(), strict=True):
        draw_estimates(axes, names, estimates, highlighted, label.format(RESPONSES[response]))
