"""Functions of the notebooks in ``docs/lessons``.

They find runs, start scripts, and show figures and tables in place.
"""

import io
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from html import escape
from itertools import zip_longest
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from overfitting_lab.campaign.pages import results_of
from overfitting_lab.campaign.reference import REFERENCE
from overfitting_lab.campaign.values import cells_of
from overfitting_lab.cli import finished
from overfitting_lab.comparison.charts import (
    add_legend,
    curve_lines,
    draw_accuracies,
    draw_curves,
    draw_gap,
    draw_learned,
    draw_reliability,
)
from overfitting_lab.comparison.comparison import Comparison
from overfitting_lab.comparison.groups import Group, shared_instrument
from overfitting_lab.comparison.statistics import mean_cell
from overfitting_lab.runs import Run, RunError, runs_of
from overfitting_lab.runs.epochs import EpochRecord, last_gap, value_of
from overfitting_lab.runs.figures import reduce_colours, write_figure
from overfitting_lab.sweeps.charts import draw_curve, draw_worth

SCRIPTS = Path("scripts")
DPI = 80  # of pictures in a notebook, which keeps them
CURVES: dict[str, Callable[..., None]] = {  # of training and validation
    "loss": partial(draw_curves, metric="loss"),
    "accuracy": partial(draw_curves, metric="acc"),
}
CHARTS = CURVES | {
    "gap": draw_gap,
    "test": draw_accuracies,
    "learned": draw_learned,
    "confidence": draw_reliability,
    "confidence at temperature": partial(draw_reliability, at_temperature=True),
}


class Picture:
    """A figure that a notebook shows in place. It has at most 256 colours, so that the notebook stays small."""

    def __init__(self, figure: Figure) -> None:
        drawn, small = io.BytesIO(), io.BytesIO()
        write_figure(figure, drawn, format="png", dpi=DPI)
        reduce_colours(drawn, small)
        self._png = small.getvalue()

    def _repr_png_(self) -> bytes:
        return self._png

    def __repr__(self) -> str:
        return "a picture"


class Table:
    """Rows of cells that a notebook shows as a table. The first row names the columns."""

    def __init__(self, rows: Sequence[Sequence[Any]]) -> None:
        self.rows = [["" if cell is None else str(cell) for cell in row] for row in rows]

    def _repr_html_(self) -> str:
        head, *body = self.rows
        rows = [_html_row(head, "th"), *(_html_row(row, "td") for row in body)]
        return f"<table>{''.join(rows)}</table>"

    def __repr__(self) -> str:
        widths = [max(map(len, column)) for column in zip_longest(*self.rows, fillvalue="")]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in self.rows]
        return "\n".join(lines)


def _html_row(cells: Sequence[str], tag: str) -> str:
    return f"<tr>{''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in cells)}</tr>"


def enter_project() -> None:
    """Change to the project's folder from a folder within it, such as ``docs/lessons``.

    Raises:
        RunError: if the working directory is not within the project.
    """
    for folder in (Path.cwd(), *Path.cwd().parents):
        if (folder / REFERENCE).is_dir():
            os.chdir(folder)
            return
    raise RunError(
        f"{Path.cwd()} is not within a clone of the project: type jupyter lab docs/lessons in the clone's folder"
    )


def reference(*names: str) -> list[Run]:
    """Return the runs with these names in ``lightning_logs/reference``, the first seed of each name first.

    Raises:
        RunError: if there is no such run.
    """
    found = {name: runs_of(REFERENCE / name)[::-1] for name in names}
    for name, runs in found.items():
        if not runs:
            raise RunError(f"{REFERENCE / name} has no run: restore it with git checkout {REFERENCE}")
    return [run for runs in found.values() for run in runs]


def train(flags: str) -> Run:
    """Return the finished run of ``python scripts/fit.py FLAGS``, which is trained if it is missing.

    The epochs appear below the cell, on Windows in Jupyter's terminal.

    Raises:
        RunError: if the run fails.
    """
    return finished.finished_run(shlex.split(flags), scripts=SCRIPTS)


def run_script(name: str, flags: str) -> None:
    """Run ``python scripts/NAME.py FLAGS``.

    Raises:
        RunError: if it fails.
    """
    status = finished.run_command([sys.executable, str(SCRIPTS / f"{name}.py"), *shlex.split(flags)], None)
    if status:
        raise RunError(f"python scripts/{name}.py {flags} ended with exit status {status}")


def chart(comparison: Comparison, *names: str) -> Picture:
    """Draw charts of runs beside each other. ``names`` are keys of ``CHARTS``."""
    groups = comparison.drawn
    height = max(4.2, 1.4 + 0.45 * len(groups)) if "test" in names else 4.2
    figure = Figure(figsize=(max(6.4, 5.6 * len(names)), height), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False).flat, names, strict=True):
        CHARTS[name](axes, groups)
    add_legend(figure, groups, curve_lines(groups) if CURVES.keys() & names else {})
    return Picture(figure)


def results(comparison: Comparison) -> Table:
    """Return a row for each setting: the mean over seeds, of several with its standard deviation.

    Training and validation accuracy are of the last epoch. The training images as evaluated are the probe. A column
    that no row fills is left out. The gap is from the probe if all runs have one, else from training.
    """
    by = shared_instrument(comparison.groups)
    columns: dict[str, list[Any]] = {
        "setting": [group.name for group in comparison.groups],
        "seeds": [len(group.seeds) for group in comparison.groups],
    }
    measured: dict[str, Callable[[Group], Sequence[float | None]]] = {
        "training (%)": lambda group: [run.epochs[-1].train_acc if run.epochs else None for run in group.seeds],
        "training images, evaluated (%)": lambda group: group.probe_accuracies,
        "validation (%)": lambda group: [run.epochs[-1].val_acc if run.epochs else None for run in group.seeds],
        "gap (points)": lambda group: [gap and gap.value for gap in (last_gap(run.epochs, by) for run in group.seeds)],
        "test (%)": lambda group: group.accuracies,
    }
    for name, values in measured.items():
        cells = [mean_cell(values(group)) for group in comparison.groups]
        columns |= {name: cells} if any(cells) else {}
    return Table([list(columns), *zip(*columns.values(), strict=True)])


def ablation(name: str, *, best_first: bool = False) -> Table:
    """Return the cells of an ablation on a page in ``docs``, such as ``ablation/remedies``: means over seeds.

    The last column is the difference to the first row's test accuracy, with its 95 % interval.

    Args:
        name: of the page.
        best_first: sort the rows after the first one by test accuracy. Otherwise they are in the order of the levels.

    Raises:
        RunError: if there is no such page.
    """
    if not (trials := results_of(name)):
        raise RunError(f"docs/{name}.json is missing: restore it with git checkout docs/ablation")
    first, *others = cells_of(trials)
    if best_first:
        others.sort(key=lambda cell: -cell.gains["test"].value)
    columns = {"test": "test", "gap": "gap (points)", "calibration": "calibration error (points)"}
    rows = [
        [cell.label, cell.n, *(cell.text(metric) for metric in columns), cell.gains["test"].in_points()]
        for cell in (first, *others)
    ]
    rows[0][-1] = ""
    return Table([["setting", "seeds", *columns.values(), "test, against the first row (points)"], *rows])


def learning_curve(sizes: Comparison, worth: Comparison | None = None) -> Picture:
    """Draw test accuracy over the number of training images, and where it reaches the accuracies of other settings.

    Args:
        sizes: runs that differ in their number of training images, and in their seed.
        worth: runs with other settings.
    """
    groups = sorted(sizes.groups, key=lambda group: group.runs[0].summary.data.train_size)
    levels = [group.runs[0].summary.data.train_size for group in groups]
    curve = [group.accuracy if group.several else group.runs[0].accuracy for group in groups]
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes: Axes = figure.subplots()
    draw_curve(axes, levels, curve, "test accuracy (%)", "training images")
    if worth is not None:
        draw_worth(axes, levels, curve, [(group.name, group.accuracy) for group in worth.groups])
    return Picture(figure)


def epochs(records: Sequence[EpochRecord], numbers: Sequence[int], metrics: Mapping[str, str]) -> Table:
    """Return some epochs of a run as a table: losses in nats, other metrics in per cent.

    Args:
        records: of the run.
        numbers: of the epochs, the first is 1.
        metrics: names of the columns by metric, such as ``val_acc``.
    """

    def cell(record: EpochRecord, metric: str) -> str:
        value = value_of(record, metric)
        return "" if value is None else f"{value:.2f}" if metric.endswith("loss") else f"{value:.1%}"

    shown = [record for record in records if record.epoch + 1 in numbers]
    rows = [[record.epoch + 1, *(cell(record, metric) for metric in metrics)] for record in shown]
    return Table([["epoch", *metrics.values()], *rows])
