"""Runs found by their settings: a finished run is returned, an interrupted one resumed, a missing one trained."""

import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

import yaml

from overfitting_lab.callbacks.limits import fit_schedule
from overfitting_lab.cli.experiment import ExperimentCLI
from overfitting_lab.runs import Run, RunError, runs_with
from overfitting_lab.runs.files import experiments_folder
from overfitting_lab.runs.recipe import flat, recipe


def planned_experiment(arguments: Sequence[str], *, divided: bool = True) -> tuple[Path, dict[str, Any], ExperimentCLI]:
    """Return the folder of an experiment's runs, all settings by flag, and the experiment.

    Args:
        arguments: a command line of ``fit.py``.
        divided: divide the images among the splits, and compute the settings that depend on their number.

    Raises:
        DataError: if the data cannot be had, or do not suffice.
        LimitError: if the learning-rate schedule is shorter than the run.
    """
    cli = ExperimentCLI([*arguments], keep=False)
    cli.datamodule.prepare_data()
    if divided:
        cli.datamodule.setup("fit")
        fit_schedule(cli.trainer, cli.model, cli.datamodule)
    folder = experiments_folder(cli.config.trainer.default_root_dir) / cli.config.experiment
    return folder, flat(yaml.safe_load(cli.complete_config)), cli


def finished_run(
    arguments: Sequence[str],
    output: IO[str] | None = None,
    *,
    anywhere: bool = False,
    scripts: Path | None = None,
    keep_checkpoints: bool = True,
) -> Run:
    """Return the newest finished run with the recipe of a command line, on the same data.

    If there is none, resume the newest interrupted run, after any other process that trains it, or train a new run.

    Args:
        arguments: a command line of ``fit.py``.
        output: receives what ``fit.py`` prints; by default the screen does.
        anywhere: look for the run in the folders of all experiments, not only in the folder of its own.
        scripts: the folder of ``fit.py``; by default the folder of the script that is running.
        keep_checkpoints: if false, discard those of a run that is trained here: they are most of its size. A run of
            another experiment keeps them.

    Raises:
        RunError: if ``fit.py`` fails.
        DataError: if the data cannot be had.
    """
    experiment, settings, cli = planned_experiment(arguments)
    data = cli.datamodule.description()
    wanted = recipe(settings, data)
    del cli  # its network would take up memory while another process trains the same one

    def matching() -> list[Run]:
        folders = experiments(experiment.parent) if anywhere else [experiment]
        return [run for folder in folders for run in runs_with(folder, wanted, data["fingerprint"])]

    def finished() -> Run | None:
        return next((run for run in matching() if run.finished), None)

    if run := finished():
        return run
    command = [*arguments]
    if begun := matching():
        begun[0].files.wait_for_training()
        if run := finished():
            return run
        command = ["--resume", str(begun[0].folder), *_without_experiment(arguments)]  # a run stays in its folder
    if output is None:
        print(f"training   no finished run has these settings, so this trains one: {shlex.join(arguments)}", flush=True)
    fit = (scripts or Path(sys.argv[0]).resolve().parent) / "fit.py"
    status = run_command([sys.executable, str(fit), *command], output)
    if run := finished():
        if not keep_checkpoints and run.folder.parent == experiment:  # a run elsewhere is someone else's
            for path in run.files.checkpoints.rglob("*.*"):
                path.unlink(missing_ok=True)
        return run
    unfinished = f": {begun[0].why_unfinished}" if (begun := matching()) else ""
    raise RunError(
        f"python scripts/fit.py {' '.join(command)} ended with exit status {status}, and no finished run{unfinished}"
    )


def _without_experiment(arguments: Sequence[str]) -> list[str]:
    """Return a command line without ``--experiment NAME`` and ``--experiment=NAME``."""
    flag = "--experiment"
    return [
        word
        for before, word in pairwise(["", *arguments])
        if flag not in (before, word) and not word.startswith(f"{flag}=")
    ]


def experiments(logs: Path) -> list[Path]:
    """Return the folders of experiments in ``lightning_logs/``; none if there is no such folder."""
    return sorted(path for path in logs.iterdir() if path.is_dir()) if logs.is_dir() else []


def run_command(command: list[str], output: IO[str] | None) -> int:
    """Run a command and return its exit status. Ctrl-C and SIGTERM let it save its state before this process ends."""
    process = subprocess.Popen(command, stdout=output, stderr=output)
    terminated = False

    def terminate(*_: Any) -> None:
        nonlocal terminated
        terminated = True
        process.terminate()

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        return process.wait()
    except KeyboardInterrupt:  # the terminal sent it to the command as well
        process.wait()
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
        if terminated:
            sys.exit(128 + signal.SIGTERM)
