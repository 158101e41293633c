"""The winner of a search: its configuration, its test, and a page about the search."""

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any

import matplotlib.pyplot as plt
import numpy as np
import optuna
from filelock import FileLock
from matplotlib import rc_context
from matplotlib.figure import Figure
from optuna.trial import FrozenTrial, TrialState
from optuna.visualization import matplotlib as plots

from overfitting_lab.comparison.report import render
from overfitting_lab.runs import Run, RunError
from overfitting_lab.runs.files import replace_file, write_text
from overfitting_lab.runs.notes import attempt
from overfitting_lab.sweeps.names import shown
from overfitting_lab.sweeps.selection import Selection, tested_against_validation
from overfitting_lab.sweeps.tuning import SEARCH, Tuning

BEST_ROWS = 10  # trials in the page's table


def selection_of(tuning: Tuning, seeds: int) -> Selection:
    """Estimate from other seeds, ``seeds`` of them, how much of the winner's lead comes from selection."""
    winner = tuning.winner
    return Selection(
        monitor=tuning.monitor,
        number=winner.number,
        value=float(winner.value or 0),
        trials=len(tuning.finished()),
        winner=tuning.confirmed(winner.number, seeds),
        baseline=tuning.confirmed(None, seeds),
    )


def run_of_winner(tuning: Tuning) -> Run:
    """Return the run of the winner.

    Raises:
        RunError: if its folder is gone.
    """
    run = tuning.run_of(SEARCH, tuning.winner.number)
    if run is None:
        raise RunError(
            f"the run of trial {tuning.winner.number} is gone from {tuning.folder}, so that the winner cannot be "
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
            with log.open("a") as output:
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
        f"# Command:  python scripts/fit.py --config {path}\n"
    )
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
                save = partial(figure.savefig, dpi=120, format="png", bbox_inches="tight")
                replace_file(tuning.folder / name, save)
                written.append(tuning.folder / name)
        write_text(page, render(Path(__file__).with_name("templates") / "tuning.md", content))
    return [page, *written]


def _row(tuning: Tuning, trial: FrozenTrial, searched: Sequence[str]) -> list[str]:
    run = tuning.run_of(SEARCH, trial.number)
    given = dict(flag.removeprefix("--").split("=", 1) for flag in trial.user_attrs["flags"])
    epoch = run.summary.best.epoch + 1 if run and run.summary.best else ""
    return [str(trial.number), *(given[key] for key in searched), shown(trial.value or 0, tuning.monitor), str(epoch)]


def _figures(tuning: Tuning) -> Iterator[tuple[str, Figure]]:
    """Yield the file names and figures of Optuna's own plots."""
    label, search = tuning.monitor, tuning.search
    ped_anova = optuna.importance.PedAnovaImportanceEvaluator()
    draw: dict[str, Callable[[], Any]] = {
        "history": lambda: plots.plot_optimization_history(search, target_name=label),
        "importances": lambda: plots.plot_param_importances(search, evaluator=ped_anova, target_name=label),
        "slices": lambda: plots.plot_slice(search, target_name=label),
        "epochs": lambda: plots.plot_intermediate_values(search),
    }
    for name, plot in draw.items():
        with attempt(f"tuning-{name}.png"), _quiet_pyplot():
            axes = np.atleast_1d(plot()).flat[0]
            figure = axes.figure
            figure.set_size_inches(max(8, 4 * len(tuning.winner.params)) if name == "slices" else 8, 4.5)
            if name == "epochs":
                axes.set(xlabel="epoch, from 0", ylabel=label, title=f"{label} of each trial")
                if axes.get_legend() is not None:  # a line a trial
                    axes.get_legend().remove()
            plt.close(figure)
            yield f"tuning-{name}.png", figure


@contextmanager
def _quiet_pyplot() -> Iterator[None]:
    """Let Optuna draw with pyplot, and leave no trace of that in the process."""
    with rc_context(), warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        plt.switch_backend("agg")
        yield
