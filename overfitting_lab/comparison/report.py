"""A comparison of runs as a page, a picture and a text."""

import base64
import io
import re
from collections.abc import Callable, Iterator
from datetime import timedelta
from html import escape
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from PIL import Image

from overfitting_lab.comparison.charts import colour, draw_estimates, draw_gap, draw_learned, draw_metric, marker, style
from overfitting_lab.comparison.comparison import Compared, Comparison
from overfitting_lab.runs.files import replace_file

INK = "#123457"  # stands for the page's own colour of text, light or dark


def write_report(comparison: Comparison, folder: Path) -> list[Path]:
    """Writes ``report.html``, which needs no other file, ``report.md`` and ``report.png``.

    Args:
        comparison: of finished runs.
        folder: where to; it is made where it is missing.

    Returns:
        The files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pages, text, picture = (folder / f"report.{ending}" for ending in ("html", "md", "png"))
    replace_file(pages, lambda path: path.write_text(html(comparison), encoding="utf-8"))
    replace_file(text, lambda path: path.write_text(markdown(comparison), encoding="utf-8"))
    figure = overview(comparison)
    replace_file(picture, lambda path: figure.savefig(path, dpi=120, format="png"))
    return [pages, text, picture]


def overview(comparison: Comparison) -> Figure:
    """Loss, accuracy, gap and test accuracy of all runs as one picture."""
    runs = [compared.run for compared in comparison.runs]
    low = max(3.6, 0.4 * len(runs))
    figure = Figure(figsize=(11, 3.8 + low), layout="constrained")
    (loss, accuracy), (gap, test) = figure.subplots(2, 2, height_ratios=(3.6, low))
    draw_metric(loss, runs, "loss")
    draw_metric(accuracy, runs, "acc")
    draw_gap(gap, runs)
    draw_estimates(test, [run.name for run in comparison.runs], [run.accuracy for run in comparison.runs])
    handles = [Line2D([], [], label=run.name, **style(place)) for place, run in enumerate(comparison.runs)]
    handles += [
        Line2D([], [], color="grey", label="validation"),
        Line2D([], [], color="grey", linestyle="--", label="training"),
    ]
    figure.legend(
        handles=handles, loc="outside upper center", ncols=min(5 if len(runs) < 5 else 2, len(handles)), frameon=False
    )
    return figure


def html(comparison: Comparison) -> str:
    """The page: one file with everything in it, light or dark as the reader's system is."""
    return _template("report.html").render(_content(comparison), charts=list(_charts(comparison)))


def markdown(comparison: Comparison) -> str:
    """The same as text, without charts and pictures."""
    return _template("report.md").render(_content(comparison))


def _template(name: str) -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=name.endswith(".html"),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    environment.filters["points"] = lambda value: "" if value is None else f"{100 * value:.1f}"
    environment.filters["p"] = lambda p: "" if p != p else "< 0.001" if p < 0.001 else f"{p:.3f}"
    environment.filters["percent"] = lambda value: "" if value is None else f"{value:.1%}"
    environment.filters["cell"] = lambda value: str(value).replace("|", "\\|").replace("\n", " ")
    return environment.get_template(name)


def _content(comparison: Comparison) -> dict[str, Any]:
    runs = comparison.runs
    classes = runs[0].summary["data"]["classes"]
    same_classes = all(run.summary["data"]["classes"] == classes for run in runs)
    confusions = [run.confusion for run in runs]
    return {
        "title": ", ".join(group.name for group in comparison.groups),
        "runs": [_row(run, place) for place, run in enumerate(runs)],
        "conclusions": list(comparison.conclusions()),
        "one_seed": any(len(group.by_seed) == 1 for group in comparison.groups),
        "pairs": comparison.pairs,
        "differing": comparison.differing,
        "classes": classes if same_classes else [],
        "by_class": [None if counts is None else _by_class(counts) for counts in confusions],
        "confusions": [
            {"name": run.name, "classes": run.summary["data"]["classes"], "rows": _shares(counts)}
            for run, counts in zip(runs, confusions, strict=True)
            if counts is not None
        ],
        "mistakes": [{"name": run.name, "pictures": list(_mistakes(run))} for run in runs if run.right is not None],
        "learned_last": [
            {"name": run.name, "pictures": list(_learned_last(run)), "epochs": run.summary["epochs"]}
            for run in runs
            if "train_learned" in run.run.images
        ],
    }


def _row(run: Compared, place: int) -> dict[str, Any]:
    summary = run.summary
    last = run.epochs[-1] if run.epochs else None
    return {
        "name": run.name,
        "place": place,
        "colour": colour(place),
        "data": summary["data"],
        "symbol": marker(place),
        "train_acc": last["train_acc"] if last else None,
        "val_acc": last["val_acc"] if last else None,
        "gap": last["train_acc"] - last["val_acc"] if last else None,
        "accuracy": run.accuracy,
        "test": summary["test"],
        "epochs": summary["epochs"],
        "seed": summary["seed"],
        "parameters": summary["model"]["parameters"],
        "network": summary["model"]["class_path"].rpartition(".")[2],
        "time": str(timedelta(seconds=round(summary["seconds"]))),
        "speed": summary.get("train_images_per_second"),
        "device": f"{summary.get('world_size', 1)} x {summary.get('device')}, {summary.get('precision')}",
        "commit": summary["git_commit"][:7] + "-dirty" * summary["git_commit"].endswith("-dirty"),
        "versions": ", ".join(f"{name} {summary['versions'][name]}" for name in ("python", "torch", "lightning")),
        "diagnosis": summary["diagnosis"],
    }


def _by_class(counts: NDArray[np.int64]) -> list[float]:
    return [float(share) for share in counts.diagonal() / np.maximum(counts.sum(axis=1), 1)]


def _shares(counts: NDArray[np.int64]) -> list[list[int]]:
    """Per cent of the row, rounded."""
    shares = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    return [[round(share) for share in row] for row in shares.tolist()]


def _mistakes(run: Compared) -> Iterator[dict[str, str]]:
    images, classes = run.run.images, run.summary["data"]["classes"]
    for place, pixels in zip(images["test_shown"], images["test_pictures"], strict=True):
        guess, label = images["test_predictions"][place], images["test_labels"][place]
        sure = float(images["test_probabilities"][place][guess])
        yield {"source": _png(pixels), "says": f"{classes[guess]} {sure:.1%}", "is": f"is {classes[label]}"}


def _learned_last(run: Compared) -> Iterator[dict[str, str]]:
    images, classes = run.run.images, run.summary["data"]["classes"]
    for place, pixels in zip(images["train_shown"], images["train_pictures"], strict=True):
        learned = int(images["train_learned"][place])
        when = "not learned" if learned >= run.summary["epochs"] else f"from epoch {learned + 1}"
        yield {"source": _png(pixels), "says": f"labelled {classes[images['train_labels'][place]]}", "is": when}


def _png(pixels: NDArray[np.uint8]) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="png")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _charts(comparison: Comparison) -> Iterator[dict[str, str]]:
    runs = [compared.run for compared in comparison.runs]
    names, accuracies = ([run.name for run in comparison.runs], [run.accuracy for run in comparison.runs])
    drawn = "training dashed (its first may lie above the axis), validation drawn through"
    yield _chart("Loss", drawn, lambda axes: draw_metric(axes, runs, "loss"))
    yield _chart("Accuracy", "training dashed, validation drawn through", lambda axes: draw_metric(axes, runs, "acc"))
    yield _chart("The gap", "training minus validation accuracy", lambda axes: draw_gap(axes, runs))
    yield _chart(
        "Test accuracy",
        "with 95 % Wilson intervals",
        lambda axes: draw_estimates(axes, names, accuracies),
        height=max(3.6, 0.5 * len(runs)),
    )
    if any("train_learned" in run.images for run in runs):
        yield _chart(
            "Memorization",
            "training images named right at every later visit; it ends at the last epoch's accuracy by definition",
            lambda axes: draw_learned(axes, runs),
        )


def _chart(title: str, what: str, draw: Callable[[Axes], None], height: float = 3.6) -> dict[str, str]:
    """A chart as SVG in the page's own colours and type; what belongs to a run has its class, as in ``run-0``."""
    name = title.lower().replace(" ", "-")
    settings: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": name, "font.size": 10}
    for part in ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"):
        settings[part] = INK
    with rc_context(settings):
        figure = Figure(figsize=(5.4, height), layout="constrained")
        draw(figure.subplots())
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    svg = file.getvalue()
    svg = re.sub(r'id="(run-\d+)"', r'class="\1"', svg[svg.index("<svg") :])
    svg = re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{name}-", svg).replace(INK, "currentColor")
    label = escape(f"{title}: {what}; the numbers are in the tables")
    head = re.compile(r"<svg [^>]*?(viewBox=\"[^\"]*\")[^>]*>")
    svg = head.sub(lambda match: f'<svg {match[1]} role="img" aria-label="{label}">', svg, count=1)
    return {"title": title, "what": what, "svg": svg}
