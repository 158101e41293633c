"""Runs by their settings: one that has finished is found, one that was stopped goes on, one that is missing is made."""

import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import yaml
from filelock import FileLock, Timeout

from overfitting_lab.cli.experiment import ExperimentCLI
from overfitting_lab.runs import Run, RunError, runs_of
from overfitting_lab.runs.recipe import flat, recipe

FIT = Path(__file__).resolve().parents[2] / "scripts" / "fit.py"


def finished_run(arguments: Sequence[str], output: IO[str] | None = None) -> Run:
    """The newest finished run of exactly the settings that a command line of ``fit.py`` has.

    Where there is none, ``fit.py`` makes it; where one was stopped, the newest goes on; where another process trains
    it, its end is waited for. The data must be the same, by its fingerprint; where it lies may differ, and so may the
    device and whatever else decides nothing of what comes out.

    Args:
        arguments: as ``fit.py`` takes them.
        output: where what ``fit.py`` prints goes; none leaves it on the screen.

    Raises:
        RunError: if ``fit.py`` fails.
        DataError: if the data cannot be had.
    """
    cli = ExperimentCLI([*arguments], keep=False)
    cli.datamodule.prepare_data()
    cli.datamodule.setup("fit")
    data = cli.datamodule.description()
    experiment = Path(cli.config.trainer.default_root_dir or ".") / "lightning_logs" / cli.config.experiment
    wanted = recipe(flat(yaml.safe_load(cli.complete_config)), data)
    del cli  # with its network, which would take up memory while another process trains the same

    def started() -> list[Run]:
        runs = [run for run in runs_of(experiment) if run.status != "unknown"]
        return [run for run in runs if run.summary.data.fingerprint == data["fingerprint"]
                and run.recipe == wanted]  # fmt: skip

    def finished() -> Run | None:
        return next((run for run in started() if run.finished), None)

    if run := finished():
        return run
    command = [*arguments]
    if stopped := started():
        folder = stopped[0].folder
        _wait_for(folder)
        command = ["--resume", str(folder), *command]
        if run := finished():
            return run
    status = _run([sys.executable, str(FIT), *command], output)
    if run := finished():
        return run
    raise RunError(f"python scripts/fit.py {' '.join(command)} ended with exit status {status}, and no finished run")


def _wait_for(folder: Path) -> None:
    """Waits until no other process trains a run."""
    lock = FileLock(folder / ".lock")  # which a run holds while it is trained
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"waiting for the process that trains {folder}", flush=True)
        lock.acquire()
    lock.release()


def _run(command: list[str], output: IO[str] | None) -> int:
    """Runs a command; Ctrl-C and SIGTERM let it save what it has before this process ends by them."""
    process = subprocess.Popen(command, stdout=output, stderr=output)
    terminated = False

    def terminate(*_: Any) -> None:
        nonlocal terminated
        terminated = True
        process.terminate()

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        return process.wait()
    except KeyboardInterrupt:  # which the terminal sent to the command too
        process.wait()
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
        if terminated:
            sys.exit(128 + signal.SIGTERM)
