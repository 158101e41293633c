"""The report on a comparison: a page, a picture and a text."""

import base64
import io
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from html import escape
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from overfitting_lab.comparison.charts import (
    add_legend,
    curve_lines,
    draw_accuracies,
    draw_curves,
    draw_gap,
    draw_label_noise,
    draw_learned,
    draw_reliability,
    style,
)
from overfitting_lab.comparison.comparison import Comparison
from overfitting_lab.comparison.groups import Group, NamedRun, shared_instrument
from overfitting_lab.comparison.moments import Moments
from overfitting_lab.comparison.pictures import Captioned, Kind, mistakes, training_images
from overfitting_lab.comparison.statistics import mean_cell
from overfitting_lab.runs.epochs import best_epoch, own_of
from overfitting_lab.runs.figures import save_figure, write_figure
from overfitting_lab.runs.files import write_text
from overfitting_lab.runs.notes import attempt
from overfitting_lab.runs.provenance import short_commit
from overfitting_lab.runs.templates import render
from overfitting_lab.runs.text import duration

TEMPLATES = Path(__file__).with_name("templates")
INK = "#123457"  # stands for the page's own colour of text, light or dark
SYMBOLS = {"": "", "o": "●", "s": "■", "^": "▲", "v": "▼", "D": "◆"}  # of the charts' markers
INTERVALS = {False: "Wilson intervals", True: "Student intervals over seeds, which are dots"}
GAPS = {"probe": "probe minus validation accuracy", "training": "training minus validation accuracy, without a probe"}
Table = list[list[Any]]  # rows of cells; the first row names the columns, the first cell of a row names the row


def write_report(comparison: Comparison, folder: Path) -> list[Path]:
    """Write ``report.html``, which needs no other file, ``report.md`` and ``report.png``. Return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    page, text, picture = (folder / f"report.{ending}" for ending in ("html", "md", "png"))
    write_text(page, html_page(comparison, TEMPLATES / "report.html"))
    write_text(text, render(TEMPLATES / "report.md", _content(comparison)))
    written = [page, text]
    with attempt(picture.name):
        save_figure(picture, overview(comparison))
        written.append(picture)
    return written


def html_page(comparison: Comparison, template: Path) -> str:
    """Return a page that needs no other file. Its reader moves over epochs, and switches runs on and off.

    Args:
        comparison: of the runs in the page.
        template: extends ``page.html``.
    """
    moments = Moments(comparison.drawn)
    content = {
        "charts": list(_charts(comparison.drawn)),
        "moments": moments,
        "sources": [_source(pixels) for pixels in moments.pictures],
    }
    return render(template, {**_content(comparison), **content}, TEMPLATES)


def overview(comparison: Comparison) -> Figure:
    """Draw loss, accuracy, gap and test accuracy of all runs in one figure."""
    groups = comparison.drawn
    low = max(3.6, 0.4 * len(groups))
    figure = Figure(figsize=(11, 3.8 + low), layout="constrained")
    (loss, accuracy), (gap, test) = figure.subplots(2, 2, height_ratios=(3.6, low))
    draw_curves(loss, groups, "loss")
    draw_curves(accuracy, groups, "acc")
    draw_gap(gap, groups)
    draw_accuracies(test, groups)
    add_legend(figure, groups, curve_lines(groups))
    return figure


def _content(comparison: Comparison) -> dict[str, Any]:
    runs = comparison.runs
    return {
        "title": ", ".join(group.name for group in comparison.groups),
        "runs": runs,
        "lines": [
            {"label": group.label, "colour": style(place)["color"], "symbol": SYMBOLS[style(place)["marker"]]}
            for place, group in enumerate(comparison.drawn)
        ],
        "tested_on": _tested_on(runs),
        "several": any(group.several for group in comparison.groups),
        "conclusions": list(comparison.conclusions()),
        "one_seed": not all(group.several for group in comparison.groups),
        "tables": tables(comparison),
        "confusions": {run.name: _confusion(run, run.confusion) for run in runs if run.confusion is not None},
        "mistakes": {run.name: [*map(_embedded, mistakes(run))] for run in runs if "test_shown" in run.run.images},
        "learned_last": _training_images(runs, "learned_last"),
        "forgotten": {
            "most": _training_images(runs, "most_forgotten"),
            "least": _training_images(runs, "least_forgotten"),
        },
    }


def _tested_on(runs: Sequence[NamedRun]) -> str:
    """Return the number of tested images, with the runs' names if it is not the same for all."""
    names: dict[str, list[str]] = {}
    for run in runs:
        names.setdefault(run.summary.tested_on, []).append(run.name)
    return next(iter(names)) if len(names) == 1 else "; ".join(f"{n} ({', '.join(of)})" for n, of in names.items())


def tables(comparison: Comparison) -> dict[str, Table]:
    """Return the tables of the report by their names."""
    runs, groups, names = comparison.runs, comparison.groups, [run.name for run in comparison.runs]
    classes = runs[0].summary.data.classes
    if any(run.summary.data.classes != classes for run in runs):
        classes = []
    instruments = {each.instrument for group in groups for each in _rows(group)}
    older = " (from training)" if instruments == {"training"} else ""
    own = list(dict.fromkeys(name for run in runs for name in run.test.own))
    shares = [None if run.confusion is None else _shares(run.confusion).diagonal() for run in runs]
    return {
        "results": _filled([
            ["run", "n", "test accuracy (95 % Wilson)", *(f"test {name}" for name in own), f"gap, points{older}",
             "calibration error", "probe accuracy", "validation accuracy", "training accuracy", "training images",
             "epochs"],
            *chain.from_iterable(_results(group, own, named=not older) for group in groups),
        ]),
        "calibration": _filled([
            ["run", "test accuracy", "mean confidence", "calibration error (15 bins)", "loss on the test images",
             "temperature", "error at it"],
            *chain.from_iterable(map(_confidences, groups)),
        ]),
        "choices": [
            ["run", "chosen by", "best by accuracy: epoch", "accuracy", "loss", "best by loss: epoch", "accuracy",
             "loss", "accuracy, points"],
            *(_choice(run) for run in runs if run.epochs),
        ],
        "ensembles": [
            ["together", "test accuracy (95 % Wilson)", "alone, mean", "alone, best", "mean confidence",
             "calibration error", "agreement of two"],
            *([each.name, each.accuracy.in_percent(), f"{np.mean(each.accuracies):.1%}", f"{max(each.accuracies):.1%}",
               f"{each.calibration.confidence:.1%}", f"{each.calibration.error:.3f}", f"{each.agreement:.1%}"]
              for each in comparison.ensembles),
        ],
        "differences": [
            ["first", "second", "first minus second, points (95 %)", "adjusted p", "test"],
            *([pair.first, pair.second, pair.difference.points.in_points(), _probability(pair.p), pair.difference.test]
              for pair in comparison.pairs),
        ],
        "settings": [["setting", *names], *([name, *row] for name, row in comparison.differing_settings.items())],
        "classes": [
            ["test accuracy", *names],
            *([name, *(None if each is None else f"{each[place]:.1%}" for each in shares)]
              for place, name in enumerate(classes)),
        ],
        "cost": _filled([
            ["run", "time", "images/s in training", "network", "parameters", "device", "seed", "commit", "versions",
             "data", "start + training + validation + test"],
            *map(_cost, runs),
        ]),
    }  # fmt: skip


def _filled(table: Table) -> Table:
    """Return a table without the columns that no row fills: older runs lack some measurements."""
    kept = [place for place in range(len(table[0])) if any(row[place] != "" for row in table[1:])]
    return [[row[place] for place in kept] for row in table]


def _results(group: Group, own: Sequence[str], *, named: bool) -> Iterator[list[Any]]:
    """Yield the mean of a group of several seeds, then each run.

    ``own`` are the names of own metrics. ``named`` marks gaps from training.
    """
    for each in _rows(group):
        runs, first = each.seeds, each.runs[0].summary
        last = [run.epochs[-1] for run in runs if run.epochs]
        gap = mean_cell([gap and gap.value for gap in each.gaps])
        epochs = sorted({run.summary.epochs for run in runs})
        yield [
            _row_name(each),
            len(runs),
            mean_cell(each.accuracies, unit="%") if each.several else runs[0].tested,
            *(mean_cell([run.test.own.get(name) for run in runs], 1, 4) for name in own),
            f"{gap} (from training)" if gap and named and each.instrument == "training" else gap,
            mean_cell(each.calibration_errors, 1, 3),
            mean_cell(each.probe_accuracies, unit="%"),
            mean_cell([record.val_acc for record in last], unit="%") if len(last) == len(runs) else "",
            mean_cell([record.train_acc for record in last], unit="%") if len(last) == len(runs) else "",
            f"{first.data.train_size:,}",
            f"{epochs[0]} to {epochs[-1]}" if len(epochs) > 1 else epochs[0],
        ]


def _confidences(group: Group) -> Iterator[list[Any]]:
    """Yield the mean calibration of a group of several seeds, then the calibration of each run."""
    for each in _rows(group):
        tests, calibrations = [run.test for run in each.seeds], [run.calibration for run in each.seeds]
        if None in calibrations:
            continue
        yield [
            _row_name(each),
            mean_cell(each.accuracies, unit="%"),
            mean_cell([None if found is None else found.confidence for found in calibrations], unit="%"),
            mean_cell(each.calibration_errors, 1, 3),
            mean_cell([test.loss for test in tests], 1, 3),
            mean_cell([test.temperature for test in tests], 1, 2),
            mean_cell([test.calibration_error_at_temperature for test in tests], 1, 3),
        ]


def _rows(group: Group) -> list[Group]:
    return [group, *group.alone] if group.several else group.alone


def _row_name(group: Group) -> str:
    return f"{group.name}, mean" if group.several else group.name


def _choice(run: NamedRun) -> list[Any]:
    """Return the epochs that each metric would choose, and what choosing by loss costs in accuracy."""
    monitor = str(run.run.settings.get("monitor", "val_acc"))
    row: list[Any] = [run.name, {"val_acc": "accuracy", "val_loss": "loss"}.get(monitor, monitor)]
    accuracies = []
    for monitor in ("val_acc", "val_loss"):
        best = best_epoch(run.epochs, monitor)
        assert best is not None
        row += [best.epoch + 1, f"{best.val_acc:.1%}", f"{best.val_loss:.2f}"]
        accuracies.append(best.val_acc or 0.0)
    return [*row, f"{100 * (accuracies[1] - accuracies[0]):+.1f}"]


def _cost(run: NamedRun) -> list[Any]:
    summary, data = run.summary, run.summary.data
    return [
        run.name,
        duration(summary.total_seconds),
        summary.train_images_per_second,
        summary.model.class_path.rpartition(".")[2],
        f"{summary.model.parameters:,}",
        f"{summary.world_size or 1} x {summary.device}, {summary.precision}" if summary.device else None,
        summary.seed,
        short_commit(summary.git_commit),
        ", ".join(f"{name} {summary.versions[name]}" for name in ("python", "torch", "lightning")),
        f"{data.name}, split {data.split}, {data.fingerprint[:16]}",
        " + ".join(str(duration(each or 0)) for each in vars(summary.seconds_of).values())
        if summary.seconds_of
        else "",
    ]


def _probability(p: float) -> str:
    return "" if np.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


def _confusion(run: NamedRun, counts: NDArray[np.int64]) -> Table:
    classes, rows = run.summary.data.classes, np.rint(100 * _shares(counts)).astype(int).tolist()
    return [["true, in % of the row", *classes], *([name, *row] for name, row in zip(classes, rows, strict=True))]


def _shares(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the shares of a row that each cell has, float64 [classes, classes]."""
    return np.asarray(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1))


def _training_images(runs: Sequence[NamedRun], kind: Kind) -> dict[str, list[dict[str, str]]]:
    found = {f"{run.name}, {run.summary.epochs} epochs": training_images(run, kind) for run in runs}
    return {name: [*map(_embedded, pictures)] for name, pictures in found.items() if pictures is not None}


def _embedded(picture: Captioned) -> dict[str, str]:
    return {"source": _source(picture.pixels), "caption": picture.caption, "note": picture.note}


def _source(pixels: NDArray[np.uint8]) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="png")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _charts(groups: Sequence[Group]) -> Iterator[dict[str, str]]:
    """Draw charts as SVG in the page's own colours and type. The lines of a group have its class, such as ``run-0``."""
    runs = [run for group in groups for run in group.runs]
    validation, training = curve_lines(groups)
    lines = f"{training} dashed, {validation} solid"
    records = [record for run in runs for record in run.run.records]
    own, noisy = own_of(records), any(record.probe_clean_acc is not None for record in records)
    learned = "training images that stay classified correctly; by definition it ends at the last epoch's accuracy"
    intervals = "; ".join(INTERVALS[several] for several in sorted({group.several for group in groups}))
    charts: list[tuple[str, str, Callable[..., None]]] = [
        ("Loss", f"{lines}; the first training loss may lie above the axis", partial(draw_curves, metric="loss")),
        ("Accuracy", lines, partial(draw_curves, metric="acc")),
        *((name, lines, partial(draw_curves, metric=name)) for name in own),
        ("The gap", GAPS[shared_instrument(groups)], draw_gap),
        ("Test accuracy", f"with 95 % {intervals}", draw_accuracies),
        (
            "Label noise",
            "true labels solid; drawn labels memorized dashed, true class predicted dotted",
            draw_label_noise,
        ),
        ("Confidence", "on the diagonal, a network is right as often as it says", draw_reliability),
        ("Memorization", learned, draw_learned),
    ]
    for title, what, draw in charts:
        kept = {"Memorization": "train_learned", "Confidence": "test_labels"}.get(title)
        if kept is not None and not any(kept in run.run.images for run in runs):
            continue
        if title == "Label noise" and not noisy:
            continue
        height = max(3.6, 0.5 * len(groups)) if draw is draw_accuracies else 3.6
        with attempt(f"the report's chart {title}"):
            yield {"title": title, "what": what, "svg": _svg(title, what, partial(draw, groups=groups), height)}


def _svg(title: str, what: str, draw: Callable[[Axes], None], height: float) -> str:
    name = title.lower().replace(" ", "-")
    settings: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": name, "font.size": 10}
    for part in ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"):
        settings[part] = INK
    with rc_context(settings):
        figure = Figure(figsize=(5.4, height), layout="constrained")
        axes = figure.subplots()
        draw(axes)
        file = io.StringIO()
        write_figure(figure, file, format="svg", transparent=True, metadata={"Date": None})
    svg = file.getvalue()
    svg = re.sub(r'id="(run-\d+)"', r'class="\1"', svg[svg.index("<svg") :])
    svg = re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{name}-", svg).replace(INK, "currentColor")
    label = escape(f"{title}: {what}; the numbers are in the tables")
    head = rf'<svg \1 role="img" aria-label="{label}">'
    svg = re.sub(r"<svg [^>]*?(viewBox=\"[^\"]*\")[^>]*>", head, svg, count=1)
    return svg.replace("</svg>", f"{_cursor(axes)}</svg>") if axes.get_xlabel() == "epoch" else svg


def _cursor(axes: Axes) -> str:
    """Return the line that marks an epoch. Its data say where epoch 0 is, and how wide an epoch, in % of the width."""
    box, (first, last) = axes.get_position(), axes.get_xlim()
    step = 100 * box.width / (last - first)
    zero = 100 * box.x0 - first * step
    ends = f'y1="{100 * (1 - box.y1):.2f}%" y2="{100 * (1 - box.y0):.2f}%"'
    return f'<line class="cursor" {ends} data-zero="{zero:.3f}" data-step="{step:.4f}"/>'
