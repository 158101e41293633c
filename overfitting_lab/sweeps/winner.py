"""The winner of a search: its configuration, its test, and a page about the search."""

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

import optuna
from filelock import FileLock
from matplotlib.figure import Figure
from optuna.trial import FrozenTrial, TrialState

from overfitting_lab.runs import Run, RunError
from overfitting_lab.runs.figures import save_figure
from overfitting_lab.runs.files import new_run_command, write_text
from overfitting_lab.runs.notes import attempt
from overfitting_lab.runs.templates import render
from overfitting_lab.sweeps import search_charts
from overfitting_lab.sweeps.names import shown, trial_name
from overfitting_lab.sweeps.selection import Selection, tested_against_validation
from overfitting_lab.sweeps.tuning import SEARCH, Tuning

BEST_ROWS = 10  # trials in the page's table
FEWEST_VALUES = 20  # below, fewer than two trials are the best tenth, which the importances compare with all trials


def selection_of(tuning: Tuning, seeds: int) -> Selection:
    """Compare the winner with the configuration by other seeds, ``seeds`` of them."""
    winner = tuning.winner
    return Selection(
        monitor=tuning.monitor,
        number=winner.number,
        value=float(winner.value or 0),
        trials=len(tuning.finished()),
        winner=tuning.confirmed(winner.number, seeds),
        baseline=tuning.confirmed(None, seeds),
        winner_diverged=tuning.diverged(winner.number, seeds),
        baseline_diverged=tuning.diverged(None, seeds),
        tied=sum(trial.value == winner.value for trial in tuning.complete()),
    )


def run_of_winner(tuning: Tuning) -> Run:
    """Return the run of the winner.

    Raises:
        RunError: if its folder is gone.
    """
    run = tuning.run_of(SEARCH, tuning.winner.number)
    if run is None:
        raise RunError(
            f"the run of {trial_name(tuning.winner.number)} is gone from {tuning.folder}, so that the winner cannot be "
            "tested; search anew: --experiment NAME"
        )
    return run


def test_winner(tuning: Tuning, fit: Callable[[Path, IO[str]], int]) -> Run:
    """Test the winner's best checkpoint, unless it was tested before. Return its run.

    Args:
        tuning: the finished search.
        fit: resumes a run with ``fit.py``, prints to a file, and returns the exit status.

    Raises:
        RunError: if the test fails.
    """
    log = tuning.folder / "logs" / "test.txt"
    with FileLock(tuning.folder / ".winner.lock"):  # two workers may end at the same moment
        run = run_of_winner(tuning)
        if run.summary.test is None:
            with log.open("a", encoding="utf-8") as output:
                status = fit(run.folder, output)
            run = run_of_winner(tuning)
        if run.summary.test is None:
            raise RunError(f"the test of {run.folder} failed with exit status {status}; its output is in {log}")
    return run


def write_best(tuning: Tuning, selection: Selection, config: str, command: str) -> Path:
    """Write the winner's settings as a configuration for ``fit.py``. Return its path."""
    path, run = tuning.folder / "best.yaml", run_of_winner(tuning)
    best, data = run.summary.best, run.summary.data
    assert best is not None
    tested = f"\n# Tested:   {tested_against_validation(run.summary)}." if run.summary.test else ""
    card = (
        f"# The winner of a search for the best {tuning.monitor}.\n"
        f"# Reached:  {tuning.monitor} {shown(selection.value, tuning.monitor)} in epoch {best.epoch + 1} "
        f"({data.train_size:,} training images of {data.name}, n = 1 seed).{tested}\n"
        f"# Caution:  {selection.sentence}.\n"
        f"# Search:   {command}\n"
        f"# Command:  {new_run_command(path)}\n"
    )
    with FileLock(tuning.folder / ".winner.lock"):
        write_text(path, card + config)
    return path


def write_page(tuning: Tuning, selection: Selection, command: str) -> list[Path]:
    """Write ``tuning.md`` and its figures. Return their paths."""
    run, searched = run_of_winner(tuning), [*tuning.winner.params]
    page = tuning.folder / "tuning.md"
    figures = dict(_figures(tuning))
    counts = Counter(trial.state for trial in tuning.finished())
    content = {
        "selection": selection,
        "tested": tested_against_validation(run.summary),
        "tested_runs": tuning.tested(),
        "run": run.folder,
        "complete": counts[TrialState.COMPLETE],
        "pruned": [trial for trial in tuning.finished() if trial.state == TrialState.PRUNED],
        "searched": searched,
        "rows": [_row(tuning, trial, searched) for trial in tuning.complete()[:BEST_ROWS]],
        "figures": figures,
        "importances_missing": _importances_missing(tuning),
        "data": run.summary.data,
        "origin": ", ".join(
            [
                f"{run.summary.world_size} x {run.summary.device}",
                str(run.summary.precision),
                *(f"{name} {run.summary.versions[name]}" for name in ("torch", "lightning")),
                f"optuna {optuna.__version__}",
                f"commit {run.summary.git_commit or 'unknown'}",
            ]
        ),
        "command": command,
    }
    with FileLock(tuning.folder / ".winner.lock"):
        written = []
        for name, figure in figures.items():
            with attempt(name):
                save_figure(tuning.folder / name, figure)
                written.append(tuning.folder / name)
        write_text(page, render(Path(__file__).with_name("templates") / "tuning.md", content))
    return [page, *written]


def _row(tuning: Tuning, trial: FrozenTrial, searched: Sequence[str]) -> list[str]:
    run = tuning.run_of(SEARCH, trial.number)
    given = dict(flag.removeprefix("--").split("=", 1) for flag in trial.user_attrs["flags"])
    epoch = run.summary.best.epoch + 1 if run and run.summary.best else ""
    return [
        str(trial.number + 1),
        *(given[key] for key in searched),
        shown(trial.value or 0, tuning.monitor),
        str(epoch),
    ]


def _importances_missing(tuning: Tuning) -> str:
    """Return the reason why importances would say nothing, or an empty text."""
    if len(tuning.winner.params) < 2:
        return "one setting is searched"
    distinct = len({trial.value for trial in tuning.complete()})
    if distinct < FEWEST_VALUES:
        have = f"of which this search has {distinct}"
        return f"they need {FEWEST_VALUES} complete trials with different {tuning.monitor}, {have}"
    return ""


def _importances(tuning: Tuning) -> Figure:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        warnings.filterwarnings("ignore", "Some regimes for parameter", UserWarning)  # a trial from other ranges
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        return search_charts.importances(optuna.importance.get_param_importances(tuning.search, evaluator=evaluator))


def _figures(tuning: Tuning) -> Iterator[tuple[str, Figure]]:
    """Yield the names of the page's figures and the figures."""
    winner, monitor = tuning.winner.number, tuning.monitor
    complete = sorted(tuning.complete(), key=lambda trial: trial.number)
    draw: dict[str, Callable[[], Figure]] = {
        "history": lambda: search_charts.history(complete, winner, monitor),
        "importances": lambda: _importances(tuning),
        "slices": lambda: search_charts.slices(complete, winner, monitor),
        "epochs": lambda: search_charts.epochs(tuning.finished(), winner, monitor),
    }
    if _importances_missing(tuning):
        del draw["importances"]
    for name, plot in draw.items():
        with attempt(f"tuning-{name}.png"):
            yield f"tuning-{name}.png", plot()
