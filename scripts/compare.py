"""python scripts/compare.py overfit.yaml lightning_logs/regularized/version_0.

Compare runs: curves, gaps, test accuracies with tests of their differences, settings that differ, mistakes and cost.
Write report.html, report.md and report.png into a new folder in report/, or into --output. Instead of a run, name a
configuration: it is trained if it has no finished run. Flags after the names are for this training, such as
--data.source folder --data.root FOLDER. --ensemble RUN RUN also reports the accuracy of these runs together, by the
mean of their probabilities.
"""

import os
from os.path import expanduser
from pathlib import Path

try:
    from overfitting_lab.cli import reported_errors
except ImportError as error:
    remedy = "activate the project's environment, or install it: pip install -e . (or take its namesake off PYTHONPATH)"
    raise SystemExit(f"{error}; {remedy}") from None
except KeyboardInterrupt:
    raise SystemExit(130) from None

from overfitting_lab.cli.configurations import available_configs, find_config
from overfitting_lab.cli.finished import finished_run
from overfitting_lab.cli.patterns import expand_patterns
from overfitting_lab.cli.script_parser import ScriptParser
from overfitting_lab.comparison.comparison import Comparison, check_runs
from overfitting_lab.comparison.report import write_report
from overfitting_lab.runs import Run, RunError
from overfitting_lab.runs.files import unused, user_path


def run_named(name: str, flags: list[str]) -> Run:
    """Return the run in a folder, or the finished run of a configuration, which is trained if it is missing.

    Raises:
        RunError: if the run fails.
    """
    return Run(Path(name)) if Path(name).is_dir() else finished_run(["--config", name, *flags])


def main() -> None:
    """Find or train the runs, and write the report."""
    parser = ScriptParser(__doc__)
    parser.add_argument("runs", nargs="*", type=expanduser, metavar="RUN", help="a run's folder, or a configuration")
    ensemble = "runs that also answer together"
    parser.add_argument("--ensemble", nargs="+", type=expanduser, default=[], metavar="RUN", help=ensemble)
    parser.add_argument("--output", type=user_path, help="folder of the report; default: a new one in report/")
    arguments, flags = parser.parse_known_args()
    arguments.runs, arguments.ensemble = (
        [os.path.normpath(name) for name in expand_patterns(given)] for given in (arguments.runs, arguments.ensemble)
    )
    names = [*arguments.runs, *(name for name in arguments.ensemble if name not in arguments.runs)]
    if not names:
        parser.error("name the runs to compare, such as lightning_logs/overfit/version_0")
    with reported_errors():
        if flags and all(Path(name).is_dir() for name in names):
            raise RunError(
                f"{' '.join(flags)}: flags go to fit.py, but all of these runs exist; give names before flags"
            )
        for name in names:
            if not Path(name).is_dir() and not Path(find_config(name)).is_file():
                raise RunError(
                    f"{name} is neither a run's folder, such as lightning_logs/overfit/version_0, nor a configuration: "
                    f"{', '.join(available_configs())}"
                )
        check_runs([Run(Path(name)) for name in names if Path(name).is_dir()])  # before any training
        runs = [run_named(name, flags) for name in names]
        comparison = Comparison(runs, [runs[names.index(name)] for name in arguments.ensemble])
        for sentence in comparison.conclusions():
            print(sentence)
        folder = arguments.output or unused(Path("report") / comparison.folder_name)
        done = "replaced" if (folder / "report.html").exists() else "written"
        print(done, *write_report(comparison, folder))


if __name__ == "__main__":
    main()
