"""Write the results as tables, as JSON and as a chart."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.measuring import Spread
from overfitting_lab.runs.figures import save_figure
from overfitting_lab.runs.files import write_text
from overfitting_lab.runs.notes import attempt
from overfitting_lab.runs.templates import render

COLOURS = ("#999999", "#56B4E9", "#0072B2", "#009E73", "#E69F00", "#CC79A7")  # Okabe & Ito 2008
TEMPLATES = Path(__file__).with_name("templates")


def tables(results: dict[str, Any], origins: dict[str, Any] | None = None) -> str:
    """Return a Markdown table for each measured part, and one of their origins: date, commit, machine, ..."""
    return render(TEMPLATES / "benchmark.md", {"results": results, "origins": origins})


def chart(experiments: dict[str, Any], machine: dict[str, Any]) -> Figure:
    """Draw the images a second of ``steps`` as bars with their spread, and the floor as a line."""
    hardware = machine["gpu"] or f"{machine['cpu']}, {machine['threads']} threads"
    figure = Figure(figsize=(3.4 * len(experiments) + 1, 3.8), layout="constrained")
    figure.suptitle(f"Images a second in training steps; {hardware}", fontsize=11)
    every = np.atleast_1d(np.array(figure.subplots(1, len(experiments))))
    for axes, (name, experiment) in zip(every, experiments.items(), strict=True):
        rows = experiment["contenders"]
        speeds = [row["images_per_second"] for row in rows.values()]
        medians = np.array([speed.median for speed in speeds])
        spread = np.array([[speed.median - speed.low, speed.high - speed.median] for speed in speeds]).T
        axes.bar(list(rows), medians, yerr=spread, color=COLOURS[: len(rows)], capsize=4)
        for place, median in enumerate(medians):
            axes.annotate(f"{median:,.0f}", (place, median / 2), ha="center", va="center", color="white", weight="bold")
        limit = experiment["step_images"] / experiment["floor_seconds"]
        axes.axhline(limit, color="black", linestyle="--", linewidth=1)
        axes.annotate(f"what the machine allows: {limit:,.0f}", (0, limit), xycoords=("axes fraction", "data"),
                      xytext=(3, 3), textcoords="offset points", fontsize=8)  # fmt: skip
        axes.set_title(f"{name}, batch {experiment['batch_size']}", fontsize=10)
        axes.tick_params(axis="x", rotation=20 if len(rows) > 3 else 0, labelsize=9)
        axes.margins(y=0.12)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def write(part: str, results: dict[str, Any], facts: dict[str, Any], folder: Path) -> list[Path]:
    """Add a part to ``benchmark.json``, ``benchmark.md`` and, for training steps, ``benchmark.png``; return the files.

    Parts that were measured before stay, each with its own facts: machine, versions, commit, date and command.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / "benchmark.json", folder / "benchmark.md"]
    known = json.loads(files[0].read_text(encoding="utf-8"), object_hook=_spread) if files[0].is_file() else {}
    known[part] = {**facts, "results": results}
    write_text(files[0], json.dumps(known, indent=2, default=asdict) + "\n")
    write_text(files[1], tables({name: entry["results"] for name, entry in known.items()}, origins=known))
    if "steps" in known:
        files.append(folder / "benchmark.png")
        with attempt(files[-1].name):
            save_figure(files[-1], chart(known["steps"]["results"], known["steps"]["machine"]))
    return files


def _spread(values: dict[str, Any]) -> Any:
    return Spread(**values) if values.keys() == {"median", "low", "high", "n"} else values
