"""python scripts/benchmark.py --data.source folder --data.root FOLDER.

Measures how fast the project is beside a plain loop and a hand-written one, on this machine and in turns: training
steps, overfit.yaml end to end, the data path, the start-up, and how fit.py scales. Prints tables and writes them with
the figures and a chart. On two CPU cores it takes about half an hour; --parts takes some of it. Flags that it does not
know go to fit.py.
"""

import argparse
import sys
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks import data_path, end_to_end, scaling, start_up, steps
from benchmarks.machine import describe, training_device
from benchmarks.report import tables, write
from cli import reported_errors
from cli.provenance import git_commit, versions

PARTS = ("steps", "end_to_end", "data_path", "start_up", "scaling")


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure; default: all")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each contender; default: 3")
    parser.add_argument("--output", type=Path, default=Path("benchmark"), help="folder of what is written")
    arguments, rest = parser.parse_known_args()
    device = training_device()
    measures: dict[str, Callable[[], Any]] = {
        "steps": lambda: steps.measure(rest, arguments.rounds, device),
        "end_to_end": lambda: end_to_end.measure(rest, arguments.rounds),
        "data_path": lambda: data_path.measure(rest, arguments.rounds),
        "start_up": lambda: start_up.measure(rest, arguments.rounds),
        "scaling": lambda: scaling.measure(rest, arguments.rounds, device),
    }
    facts = {
        "date": date.today().isoformat(),
        "command": " ".join(["python", "scripts/benchmark.py", *sys.argv[1:]]),
        "machine": describe(device),
        "versions": versions(),
        "git_commit": git_commit(),
    }
    with reported_errors():
        results = {}
        for part in arguments.parts:
            print(f"measuring {part} ...", flush=True)
            results[part] = measures[part]()
            print(tables({part: results[part]}), flush=True)
            files = write(results, facts, arguments.output)
        print("written", *files)


if __name__ == "__main__":
    main()
