"""The results as tables, as JSON and as a chart."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.measuring import Spread, plain, spread_out
from benchmarks.start_up import FIRST_STEP, IMPORT, IMPORT_ALONE
from benchmarks.steps import ratio

COLOURS = ("#999999", "#56B4E9", "#0072B2", "#009E73", "#E69F00", "#CC79A7")  # Okabe & Ito 2008
GIB = 2**30


def tables(results: dict[str, Any]) -> str:
    """The parts that were measured, each a table in Markdown under its heading."""
    writers: dict[str, Callable[[Any], Iterator[str]]] = {
        "steps": _steps,
        "end_to_end": _end_to_end,
        "data_path": _data_path,
        "start_up": _start_up,
        "scaling": _scaling,
    }
    return "\n\n".join("\n".join(write(results[part])) for part, write in writers.items() if part in results) + "\n"


def _steps(experiments: dict[str, Any]) -> Iterator[str]:
    yield "### Training steps\n"
    columns = ("experiment", "contender", "images/s: median (lowest to highest)", "an epoch's steps, s", "of the floor")
    yield f"| {' | '.join(columns)} | peak memory |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for name, experiment in experiments.items():
        for contender, row in experiment["contenders"].items():
            share = f"{row['share_of_floor']:.0%}" if "share_of_floor" in row else ""
            yield (
                f"| {name} | {contender} | {row['images_per_second']:,.0f} | {row['epoch_seconds']:,.1f} | {share} "
                f"| {row['peak_memory'] / GIB:.2f} GiB |"
            )
    yield ""
    for name, experiment in experiments.items():
        yield (
            f"- {name}, {experiment['precision']}: fit.py is {ratio(experiment, 'fit.py', 'plain loop'):.2f} times as "
            f"fast as the plain loop, {ratio(experiment, 'fit.py', 'hand-written'):.3f} of the hand-written one; "
            f"floor {1000 * experiment['floor_seconds']:,.1f} ms a step of {experiment['step_images']:.1f} images"
        )


def _end_to_end(commands: dict[str, Any]) -> Iterator[str]:
    yield "### overfit.yaml, from the command to the finished folder\n"
    yield "| command | seconds: median (lowest to highest) | peak memory |"
    yield "| --- | --- | --- |"
    for name, row in commands.items():
        yield f"| {name} | {row['seconds']:.1f} | {row['peak_memory'] / GIB:.2f} GiB |"
    slow, fast = commands["plain loop"], commands["fit.py"]
    yield (
        f"\nfit.py is {slow['seconds'].median / fast['seconds'].median:.2f} times as fast, and takes "
        f"{fast['peak_memory'] / slow['peak_memory']:.2f} times the memory."
    )


def _data_path(ways: dict[str, Spread]) -> Iterator[str]:
    yield "### The data path alone\n"
    yield "| way | images/s: median (lowest to highest) | whole batches are so many times as fast |"
    yield "| --- | --- | --- |"
    for name, speed in ways.items():
        yield f"| {name} | {speed:,.0f} | {ways['whole batches'].median / speed.median:.1f} |"


def _start_up(commands: dict[str, Spread]) -> Iterator[str]:
    yield "### Start-up\n"
    yield "| command | seconds: median (lowest to highest) | times the bare import above it |"
    yield "| --- | --- | --- |"
    for name, seconds in commands.items():
        baseline = commands[IMPORT_ALONE if name in (IMPORT_ALONE, FIRST_STEP) else IMPORT]
        yield f"| {name} | {seconds:.2f} | {seconds.median / baseline.median:.2f} |"


def _scaling(groups: dict[str, dict[str, Spread]]) -> Iterator[str]:
    yield "### Scaling of fit.py, AlexNet, in epochs cut to about 2,000 images on a CPU\n"
    yield "| against | | images/s: median (lowest to highest) |"
    yield "| --- | --- | --- |"
    names = {"batch_size": "batch size", "train_size": "training images", "processes": "processes"}
    for group, speeds in groups.items():
        for value, speed in speeds.items():
            yield f"| {names[group]} | {int(value):,} | {speed:,.0f} |"


def chart(experiments: dict[str, Any], machine: str) -> Figure:
    """Images a second by experiment and contender, as bars; whiskers from the lowest to the highest; the floor a line.

    Args:
        experiments: the results of ``steps``.
        machine: what it was measured on.
    """
    figure = Figure(figsize=(3.4 * len(experiments) + 1, 3.8), layout="constrained")
    figure.suptitle(f"Images a second in training steps; {machine}", fontsize=11)
    for axes, (name, experiment) in zip(
        np.atleast_1d(np.array(figure.subplots(1, len(experiments)))), experiments.items(), strict=True
    ):
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
    """Adds a part to ``benchmark.json``, ``benchmark.md`` and, of training steps, ``benchmark.png``.

    Parts that were measured before stay, each with the facts that it was measured under.

    Args:
        part: its name.
        results: of it.
        facts: machine, versions, commit, date and command.
        folder: where to.

    Returns:
        The files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / "benchmark.json", folder / "benchmark.md"]
    known = json.loads(files[0].read_text()) if files[0].is_file() else {}
    known[part] = {**facts, "results": plain(results)}
    files[0].write_text(json.dumps(known, indent=2) + "\n")
    measured = {name: spread_out(entry["results"]) for name, entry in known.items()}
    files[1].write_text(tables(measured) + "\n" + "\n".join(_origins(known)) + "\n")
    if "steps" in measured:
        files.append(folder / "benchmark.png")
        machine = known["steps"]["machine"]
        name = machine["gpu"] or f"{machine['cpu']}, {machine['threads']} threads"
        chart(measured["steps"], name).savefig(files[-1], dpi=120)
    return files


def _origins(known: dict[str, Any]) -> Iterator[str]:
    yield "### Where the figures are from\n"
    yield "| part | date | commit | machine | Python, torch, Lightning | command |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for part, facts in known.items():
        machine, versions = facts["machine"], facts["versions"]
        hardware = machine["gpu"] or f"{machine['cpu']}, {machine['threads']} threads, {', '.join(machine['bf16'])}"
        commit = facts["git_commit"][:7] + "-dirty" * facts["git_commit"].endswith("-dirty")
        used = ", ".join(versions[name] for name in ("python", "torch", "lightning"))
        yield f"| {part} | {facts['date']} | {commit} | {hardware} | {used} | `{facts['command']}` |"
