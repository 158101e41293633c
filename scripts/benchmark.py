"""python scripts/benchmark.py --data.source folder --data.root FOLDER.

Compare the project's speed with a plain loop and a hand-written loop, in turns on this machine: training steps,
overfit.yaml end to end, the data path, the start-up, and the scaling of fit.py. Measure what each method against
over-fitting costs. Print tables, and write them with all numbers and a chart. All of it takes about 45 minutes on two
CPU cores; --parts measures a part. Unknown flags go to fit.py; the plain loop of overfit.yaml uses only those that set
the data's size. For Linux and macOS.
"""

from collections.abc import Callable
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

try:
    from benchmarks import data_path, end_to_end, remedies, scaling, start_up, steps
except ImportError as error:
    remedy = "activate the project's environment, or install it: pip install -e . (or take its namesake off PYTHONPATH)"
    raise SystemExit(f"{error}; {remedy}") from None
except KeyboardInterrupt:
    raise SystemExit(130) from None

from benchmarks.machine import describe
from benchmarks.report import tables, write
from overfitting_lab.cli import ExperimentCLI, reported_errors
from overfitting_lab.cli.script_parser import ScriptParser, positive
from overfitting_lab.runs.files import user_path
from overfitting_lab.runs.provenance import command_line, git_commit, versions

ROUNDS = {
    "steps": 5,
    "data_path": 5,
    "start_up": 5,
    "scaling": 2,
    "end_to_end": 2,
    "remedies": 5,
}  # 45 minutes on two cores


def main() -> None:
    """Measure, print and write."""
    parser = ScriptParser(__doc__)
    parser.add_argument("--parts", nargs="+", choices=ROUNDS, default=[*ROUNDS], help="parts to measure; default: all")
    parser.add_argument("--rounds", type=positive, help=f"repetitions per part; default: {ROUNDS}")
    parser.add_argument("--output", type=user_path, default=Path("benchmark"), help="folder for the results")
    arguments, rest = parser.parse_known_args()
    with reported_errors():
        arguments.output.mkdir(parents=True, exist_ok=True)
        cli = ExperimentCLI(["--config=overfit", *rest], keep=False)
        device = cli.trainer.strategy.root_device
        rest.append(f"--data.root={Path(cli.config.data.root).resolve()}")  # contenders run in folders of their own
        measures: dict[str, Callable[[list[str], int], Any]] = {
            "steps": partial(steps.measure, device=device),
            "data_path": data_path.measure,
            "start_up": start_up.measure,
            "scaling": partial(scaling.measure, device=device),
            "end_to_end": end_to_end.measure,
            "remedies": remedies.measure,
        }
        facts = {"date": date.today().isoformat(), "command": command_line(), "machine": describe(device)}
        facts |= {"versions": versions(), "git_commit": git_commit()}
        for part in arguments.parts:
            print(f"measuring {part} ...", flush=True)
            results = measures[part](rest, arguments.rounds or ROUNDS[part])
            print(tables({part: results}), flush=True)
            files = write(part, results, facts, arguments.output)
        print("written", *files)


if __name__ == "__main__":
    main()
