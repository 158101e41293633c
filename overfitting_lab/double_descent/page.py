"""Page of a double descent: its numbers, its figure and its text."""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from datamodules import CIFAR10DataModule
from overfitting_lab.comparison.charts import RUNS, label_axes
from overfitting_lab.double_descent.regression import Point
from overfitting_lab.runs.figures import POINTS, save_figure
from overfitting_lab.runs.files import write_text
from overfitting_lab.runs.templates import render

NAME = "double_descent"
METRICS = ("train_error", "train_acc", "test_error", "test_acc")
Summary = Mapping[str, Any]  # the content of the JSON file


def write(points: Sequence[Point], data: CIFAR10DataModule, facts: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write every point as CSV, their summary as JSON, the figure and the page; return the files.

    ``facts`` tell where the points are from: ``seconds``, ``command``, ``versions`` and ``git_commit``.
    """
    table, numbers, picture, text = files = [folder / f"{NAME}.{ending}" for ending in ("csv", "json", "png", "md")]
    summary = {**describe(data), **summarize(points), **facts}
    write_text(table, as_csv(points))
    write_text(numbers, json.dumps(summary, indent=2) + "\n")
    save_figure(picture, figure(summary))
    write_text(text, page(summary))
    return files


def as_csv(points: Iterable[Point]) -> str:
    """Return a table of points, a row each."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(Point)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(map(asdict, points))
    return text.getvalue()


def describe(data: CIFAR10DataModule) -> dict[str, Any]:
    """Return the facts about the data: its description, how many training labels are wrong, and the chance level."""
    chance = 1 / data.num_classes
    drawn, true = (labels[data.train_indices] for labels in (data.images.train_labels, data.true_labels))
    return {
        "data": data.description(),
        "wrong_labels": int((drawn != true).sum()),
        "chance": {"error": 1 - chance, "acc": chance},
        "threads": torch.get_num_threads(),
    }


def summarize(points: Sequence[Point]) -> dict[str, Any]:
    """Return the seeds, the numbers of features, and each curve: median, lowest and highest value over the seeds."""
    features = sorted({point.features for point in points})
    settings = sorted({(point.ridge, point.label_noise) for point in points})
    return {
        "seeds": sorted({point.seed for point in points}),
        "features": features,
        "ridge": settings[-1][0],
        "curves": [
            {
                "label_noise": noise,
                "ridge": ridge,
                **{metric: _over_seeds(points, (ridge, noise), features, metric) for metric in METRICS},
            }
            for ridge, noise in settings
        ],
    }


def _over_seeds(
    points: Sequence[Point], setting: tuple[float, float], features: Sequence[int], metric: str
) -> dict[str, list[float]]:
    own = [point for point in points if (point.ridge, point.label_noise) == setting]
    values = np.array([[getattr(point, metric) for point in own if point.features == size] for size in features])
    statistics = {"median": np.median(values, 1), "low": values.min(1), "high": values.max(1)}
    return {name: statistic.tolist() for name, statistic in statistics.items()}


def figure(summary: Summary) -> Figure:
    """Draw test error, test accuracy and training accuracy over the number of features.

    The error at the interpolation threshold may lie far above all others, off the chart. Then a remark states it.
    """
    drawn = Figure(figsize=(16.5, 4.6), layout="constrained")
    images, features, curves = summary["data"]["train_size"], summary["features"], summary["curves"]
    seeds = len(summary["seeds"])
    drawn.suptitle(
        f"Regression on random features of {images:,} images of {summary['data']['name']}; "
        f"{f'median and range over {seeds} draws' if seeds > 1 else 'one draw'}"
    )
    panels = {"test_error": "test error", "test_acc": "test accuracy (%)", "train_acc": "training accuracy (%)"}
    for axes, (metric, label) in zip(drawn.subplots(1, len(panels)), panels.items(), strict=True):
        unit = 100 if metric.endswith("acc") else 1
        for curve, colour in zip(curves, RUNS, strict=False):
            median, low, high = (unit * np.array(curve[metric][name]) for name in ("median", "low", "high"))
            axes.plot(features, median, color=colour, label=curve_name(curve), **POINTS)
            axes.fill_between(features, low, high, color=colour, alpha=0.2, linewidth=0)
        if metric != "train_acc":
            chance = summary["chance"][metric.removeprefix("test_")]
            axes.axhline(unit * chance, color="black", linestyle=":", linewidth=1, label="chance level")
        axes.axvline(images, color="grey", linestyle="--", linewidth=1, label="as many features as images")
        label_axes(axes, label, "random features")
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        if metric == "test_error":
            _cut_peak(axes, summary)
            axes.legend(fontsize="small", loc="upper left")
    return drawn


def _cut_peak(axes: Axes, summary: Summary) -> None:
    """Make the axis of errors logarithmic, and end it above all numbers of features but the threshold."""
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    threshold = summary["features"].index(summary["data"]["train_size"])
    medians = np.array([curve["test_error"]["median"] for curve in summary["curves"]])
    highest, top = medians[:, threshold].max(), 2 * np.delete(medians, threshold, axis=1).max()
    if highest > top:
        axes.set_ylim(top=top)
        remark = f"up to {number(highest)} with {summary['data']['train_size']:,} features, off the chart"
        axes.set_title(remark, fontsize="small", loc="left")


def curve_name(curve: Mapping[str, Any]) -> str:
    """Return a curve's name: its labels and its ridge."""
    labels = f"{100 * curve['label_noise']:.0f} % label noise" if curve["label_noise"] else "true labels"
    return f"{labels}, {'ridge ' + format(curve['ridge'], 'g') if curve['ridge'] else 'no ridge'}"


def page(summary: Summary) -> str:
    """Return the page, in Markdown."""
    threshold = summary["features"].index(summary["data"]["train_size"])
    curves = [_landmarks(curve, summary["features"], threshold) for curve in summary["curves"]]
    residue = max(max(curve["train_error"]["high"][threshold:]) for curve in summary["curves"] if not curve["ridge"])
    content = {**summary, "curves": curves, "residue": residue, "number": number}
    return render(Path(__file__).with_name("templates") / f"{NAME}.md", content)


def _landmarks(curve: Mapping[str, Any], features: Sequence[int], threshold: int) -> dict[str, Any]:
    """Return a curve's name and ridge, and its results at the numbers of features that the page names."""
    errors, accuracies = (curve[f"test_{metric}"]["median"] for metric in ("error", "acc"))
    places = {
        "fewer": min(range(threshold), key=errors.__getitem__),
        "fewer_acc": max(range(threshold), key=accuracies.__getitem__),
        "highest": max(range(len(features)), key=errors.__getitem__),
        "threshold": threshold,
        "last": len(features) - 1,
    }
    return {"name": curve_name(curve), "ridge": curve["ridge"]} | {
        name: {"features": features[place], "error": errors[place], "acc": accuracies[place]}
        for name, place in places.items()
    }


def at(summary: Summary, features: Sequence[int]) -> list[list[str]]:
    """Return a table of test error and accuracy at some numbers of features, a row each curve, the first row names."""
    places = [summary["features"].index(each) for each in features]
    rows = [
        [
            curve_name(curve),
            *(
                f"{number(curve['test_error']['median'][place])}, {curve['test_acc']['median'][place]:.1%}"
                for place in places
            ),
        ]
        for curve in summary["curves"]
    ]
    return [["test error, test accuracy", *(f"{each:,} features" for each in features)], *rows]


def number(value: float) -> str:
    """Return an error with as many digits as it has meaning."""
    return f"{value:.2f}" if value < 100 else f"{value:,.0f}"
