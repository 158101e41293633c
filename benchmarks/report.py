"""Write the results as tables, as JSON and as a chart."""

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.measuring import Spread

COLOURS = ("#999999", "#56B4E9", "#0072B2", "#009E73", "#E69F00", "#CC79A7")  # Okabe & Ito 2008
SPEED, SECONDS = (f"{unit}: median (lowest to highest)" for unit in ("images/s", "seconds"))
GIB = 2**30


def tables(results: dict[str, Any]) -> str:
    """Return a Markdown table with its heading for each measured part."""
    writers: dict[str, Callable[[Any], str]] = {
        "steps": _steps,
        "end_to_end": _end_to_end,
        "data_path": _data_path,
        "start_up": _start_up,
        "scaling": _scaling,
    }
    return "\n\n".join(write(results[part]) for part, write in writers.items() if part in results) + "\n"


def _table(title: str, columns: str, rows: Iterable[str]) -> str:
    rule = " | ".join("---" for _ in columns.split(" | "))
    return "\n".join([f"### {title}\n", *(f"| {row} |" for row in (columns, rule, *rows))])


def _steps(experiments: dict[str, Any]) -> str:
    table = _table(
        "Training steps",
        f"experiment | contender | {SPEED} | an epoch's steps, s | of the floor | peak memory",
        (
            f"{name} | {contender} | {row['images_per_second']:,.0f} | {row['epoch_seconds']:,.1f} | "
            f"{format(row['share_of_floor'], '.0%') if 'share_of_floor' in row else ''} | "
            f"{row['peak_memory'] / GIB:.2f} GiB"
            for name, experiment in experiments.items()
            for contender, row in experiment["contenders"].items()
        ),
    )
    lines = [table, ""]
    for name, experiment in experiments.items():
        speed = {name: row["images_per_second"].median for name, row in experiment["contenders"].items()}
        lines.append(
            f"- {name}, {experiment['precision']}: fit.py is {speed['fit.py'] / speed['plain loop']:.2f} times as fast "
            f"as the plain loop, {speed['fit.py'] / speed['hand-written']:.3f} of the hand-written one; floor "
            f"{1000 * experiment['floor_seconds']:,.1f} ms a step of {experiment['step_images']:.1f} images"
        )
    return "\n".join(lines)


def _end_to_end(commands: dict[str, Any]) -> str:
    rows = (f"{name} | {row['seconds']:.1f} | {row['peak_memory'] / GIB:.2f} GiB" for name, row in commands.items())
    table = _table("overfit.yaml, from the command to the finished folder", f"command | {SECONDS} | peak memory", rows)
    slow, fast = commands["plain loop"], commands["fit.py"]
    times = slow["seconds"].median / fast["seconds"].median
    memory = fast["peak_memory"] / slow["peak_memory"]
    return f"{table}\n\nfit.py is {times:.2f} times as fast, and takes {memory:.2f} times the memory."


def _data_path(ways: dict[str, Spread]) -> str:
    fast = ways["whole batches"].median
    rows = (f"{name} | {speed:,.0f} | {fast / speed.median:.1f}" for name, speed in ways.items())
    return _table("The data path alone", f"way | {SPEED} | whole batches are so many times as fast", rows)


def _start_up(commands: dict[str, Spread]) -> str:
    rows, baseline = [], 1.0
    for name, seconds in commands.items():
        baseline = seconds.median if name.startswith("import") else baseline
        rows.append(f"{name} | {seconds:.2f} | {seconds.median / baseline:.2f}")
    return _table("Start-up", f"command | {SECONDS} | times the bare import above it", rows)


def _scaling(groups: dict[str, dict[str, Spread]]) -> str:
    names = {"batch_size": "batch size", "train_size": "training images", "processes": "processes"}
    speeds = ((names[group], value, speed) for group in groups for value, speed in groups[group].items())
    rows = (f"{name} | {int(value):,} | {speed:,.0f}" for name, value, speed in speeds)
    title = "Scaling of fit.py, AlexNet, in epochs cut to about 2,000 images on a CPU"
    return _table(title, f"against |  | {SPEED}", rows)


def _origins(known: dict[str, Any]) -> str:
    rows = []
    for part, facts in known.items():
        commit = facts["git_commit"][:7] + "-dirty" * facts["git_commit"].endswith("-dirty")
        used = ", ".join(facts["versions"][name] for name in ("python", "torch", "lightning"))
        machine = facts["machine"]
        hardware = ", ".join([_hardware(machine), *([] if machine["gpu"] else machine["bf16"])])
        rows.append(f"{part} | {facts['date']} | {commit} | {hardware} | {used} | `{facts['command']}`")
    columns = "part | date | commit | machine | Python, torch, Lightning | command"
    return _table("Where the figures are from", columns, rows)


def _hardware(machine: dict[str, Any]) -> str:
    return machine["gpu"] or f"{machine['cpu']}, {machine['threads']} threads"


def chart(experiments: dict[str, Any], machine: str) -> Figure:
    """Draw the images a second of ``steps`` as bars with their spread, and the floor as a line."""
    figure = Figure(figsize=(3.4 * len(experiments) + 1, 3.8), layout="constrained")
    figure.suptitle(f"Images a second in training steps; {machine}", fontsize=11)
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
    known = json.loads(files[0].read_text(), object_hook=_spread) if files[0].is_file() else {}
    known[part] = {**facts, "results": results}
    files[0].write_text(json.dumps(known, indent=2, default=asdict) + "\n")
    files[1].write_text(f"{tables({name: entry['results'] for name, entry in known.items()})}\n{_origins(known)}\n")
    if "steps" in known:
        files.append(folder / "benchmark.png")
        chart(known["steps"]["results"], _hardware(known["steps"]["machine"])).savefig(files[-1], dpi=120)
    return files


def _spread(values: dict[str, Any]) -> Any:
    return Spread(**values) if values.keys() == {"median", "low", "high", "n"} else values
