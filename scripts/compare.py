"""python scripts/compare.py overfit.yaml lightning_logs/regularized/version_0.

Compares runs: their curves, gaps and test accuracies, whether a difference is more than noise, what differs in their
settings, what they got wrong, what they cost. Leaves report.html, report.md and report.png. In place of a run the name
of a configuration may stand: it is trained where it has no finished run yet. Flags behind them go to fit.py then, as
--data.source folder --data.root FOLDER.
"""

import argparse
from pathlib import Path

from overfitting_lab.cli import reported_errors
from overfitting_lab.cli.finished import finished_run
from overfitting_lab.cli.parser import available_configs, find_config
from overfitting_lab.comparison.comparison import Comparison
from overfitting_lab.comparison.report import write_report
from overfitting_lab.runs.run import Run, RunError


def run_named(name: str, flags: list[str]) -> Run:
    """A run's folder, or the finished run of a configuration.

    Raises:
        RunError: if it is neither, or the run fails.
    """
    if Path(name).is_dir():
        return Run(Path(name))
    if not Path(find_config(name)).is_file():
        raise RunError(
            f"{name} is neither a run's folder, such as lightning_logs/overfit/version_0, nor a configuration: "
            f"{', '.join(available_configs())}"
        )
    return finished_run(["--config", name, *flags])


def main() -> None:
    """Finds or makes the runs, and writes the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's folder, or a configuration")
    parser.add_argument("--output", type=Path, default=Path("report"), help="folder of the report; default: report")
    arguments, flags = parser.parse_known_args()
    with reported_errors():
        if flags and all(Path(name).is_dir() for name in arguments.runs):
            raise RunError(f"{' '.join(flags)}: flags go to fit.py, and all of these runs are there; names stand first")
        comparison = Comparison([run_named(name, flags) for name in arguments.runs])
        for sentence in comparison.conclusions():
            print(sentence)
        print("written", *write_report(comparison, arguments.output))


if __name__ == "__main__":
    main()
