"""Trials of an ablation, each one run of ``fit.py``, which Optuna shares out among any number of workers."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import timedelta
from itertools import product
from pathlib import Path
from statistics import median
from typing import IO, Any

import optuna
from filelock import FileLock
from optuna.trial import FrozenTrial, TrialState

from overfitting_lab.runs import Run, RunError, runs_of
from overfitting_lab.runs.recipe import RENAMED
from overfitting_lab.sweeps.storage import open_storage
from overfitting_lab.sweeps.trial import Trial, result_of
from overfitting_lab.sweeps.workers import heartbeat, is_gone

FLAGS = {
    "dropout": "--model.dropout",
    "weight_decay": "--model.optimizer.weight_decay",
    "augment": "--data.augment",
    "size": "--data.train_size",
    "seed": "--seed_everything",
}
USAGE = 2  # exit status for settings that fit.py refuses


class Ablation:
    """A full grid of settings, each trained once.

    Optuna's storage records each trial's worker and result, so that workers with the same storage share the work. If a
    worker stops, the next one resumes its run. A trial discards the checkpoints of the run that it trained.

    Args:
        name: name of the study in the storage.
        grid: the values to try for one or more keys of :data:`FLAGS`.
        folder: holds the runs of the experiment.
        fixed: what all trials have in common, as plain values.
        train: function that takes flags and a file; it finds or trains the run with these flags and prints to the file.
        storage: URL of a database, or path of Optuna's journal file; by default a journal file in ``folder``.

    Raises:
        RunError: if the storage cannot be used, or the study began with other fixed settings.
    """

    def __init__(
        self,
        name: str,
        grid: Mapping[str, Sequence[Any]],
        folder: Path,
        fixed: Mapping[str, Any],
        train: Callable[[list[str], IO[str]], Run],
        storage: str | None = None,
    ) -> None:
        self.folder = folder
        self._grid = {key: list(values) for key, values in grid.items()}
        self._settings = [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]
        self._train = train
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".storage.lock"):  # if two workers start at once, one of them creates the tables
            self._study = optuna.create_study(
                study_name=f"{folder.name}, {name}",  # experiments may share a storage
                storage=open_storage(storage or str(folder / "optuna.journal")),
                sampler=optuna.samplers.RandomSampler(),  # never asked: each trial is enqueued with its setting
                direction="maximize",
                load_if_exists=True,
            )
        varied = {flag.removeprefix("--") for flag in FLAGS.values()}
        plain = json.loads(json.dumps({key: value for key, value in fixed.items() if key not in varied}))
        text = json.dumps(self._study.user_attrs.get("fixed"))
        for before, now in RENAMED.items():
            text = text.replace(f'"{before}"', f'"{now}"')
        begun = json.loads(text)
        if begun is None:
            self._study.set_user_attr("fixed", plain)
        elif begun != plain:
            differ = sorted(key for key in begun.keys() | plain.keys() if begun.get(key) != plain.get(key))
            raise RunError(
                f"the trials in {folder} were begun with other settings ({', '.join(differ)}); "
                "keep these apart: --experiment NAME"
            )

    def work(self) -> bool:
        """Work on trials until none is left. Print two lines for each. Return ``True`` if every setting has its result.

        Raises:
            RunError: at the end, if a run failed.
        """
        retried = {trial.number for trial in self._trials(TrialState.FAIL)}
        while left := self._settings_left(retried):
            self._study.enqueue_trial(left[0])
            self._study.optimize(self._objective, n_trials=1, catch=RunError)
        others = len(self._trials(TrialState.RUNNING))
        if others:
            print(f"{others} trials are with other workers; start this again when they have finished", flush=True)
        failed = len(self._trials(TrialState.FAIL))
        if failed:
            raise RunError(f"{failed} runs failed; start this again to try them once more")
        return len(self._trials(TrialState.COMPLETE)) == len(self._settings)

    def results(self) -> list[Trial]:
        """Return the results of the grid's settings, with any seed."""
        return [Trial(**trial.user_attrs["result"]) for trial in self._trials(TrialState.COMPLETE, any_seed=True)]

    def _trials(self, *states: TrialState, any_seed: bool = False) -> list[FrozenTrial]:
        """Return the trial of each of the grid's settings, if it is in one of the states.

        Of several trials with a setting, a complete one counts, else a running one, else the last.
        """
        found = {}
        trials = self._study.get_trials(deepcopy=False)
        complete, running = TrialState.COMPLETE, TrialState.RUNNING
        for trial in sorted(trials, key=lambda trial: (trial.state == complete, trial.state == running, trial.number)):
            if (
                trial.params.keys() == self._grid.keys()
                and trial.state != TrialState.PRUNED
                and all(trial.params[key] in grid or (any_seed and key == "seed") for key, grid in self._grid.items())
            ):
                found[tuple(trial.params[key] for key in self._grid)] = trial
        return [trial for trial in found.values() if trial.state in states]

    def _settings_left(self, retried: set[int]) -> list[dict[str, Any]]:
        """Return the settings without a trial, and those of failed trials to retry, given by number.

        Trials whose worker is gone are marked as failed, and their numbers are added to ``retried``.
        """
        for trial in self._trials(TrialState.RUNNING):
            if is_gone(trial):
                self._study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
                retried.add(trial.number)
        trials = self._trials(TrialState.COMPLETE, TrialState.RUNNING, TrialState.FAIL)
        begun = [trial.params for trial in trials if trial.number not in retried]
        return [setting for setting in self._settings if setting not in begun]

    def _objective(self, trial: optuna.Trial) -> float:
        """Find or train a trial's run and return its test accuracy.

        Raises:
            TrialPruned: if another trial has the setting.
            RunError: if the run fails.
        """
        setting = {
            # Integers have a wide range, so that a study may get further values later.
            key: trial.suggest_int(key, 0, 2**32 - 1)
            if all(isinstance(value, int) for value in values)
            else trial.suggest_categorical(key, values)
            for key, values in self._grid.items()
        }
        for other in self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.RUNNING)):
            # Two workers may draw the same setting at the same moment. The earlier trial has it, or a finished one.
            earlier = other.number < trial.number or (other.state.is_finished() and other.number != trial.number)
            if earlier and other.params == setting:
                raise optuna.TrialPruned
        name = ", ".join(f"{key} {value}" for key, value in setting.items())
        log = self.folder / "logs" / f"{name.replace(', ', ',').replace(' ', '=')}.txt"
        log.parent.mkdir(exist_ok=True)
        finished = [run.folder for run in runs_of(self.folder) if run.finished]
        print(f"begun      {name}", flush=True)
        with log.open("a") as output, heartbeat(trial):
            try:
                run = self._train([f"{FLAGS[key]}={value}" for key, value in setting.items()], output)
                result = result_of(run, setting)
            except (RunError, SystemExit) as error:
                if isinstance(error, SystemExit) and error.code != USAGE:
                    raise
                print(f"failed     {name}: {error}; its output is in {log}", flush=True)
                raise RunError(str(error)) from error
        for path in run.files.checkpoints.rglob("*.*") if run.folder not in finished else ():
            path.unlink(missing_ok=True)  # most of a run's size
        trial.set_user_attr("result", asdict(result))
        print(
            f"done       {name}: test accuracy {result.test_acc:.1%}, gap {100 * result.gap:.1f} points, "
            f"{timedelta(seconds=round(result.seconds))}; {self._progress(result)}",
            flush=True,
        )
        return result.test_acc

    def _progress(self, result: Trial) -> str:
        """Describe how many trials are done, and the time left if it grows with the number of images."""
        done = [Trial(**trial.user_attrs["result"]) for trial in self._trials(TrialState.COMPLETE)] + [result]
        usual = median(one.seconds / one.setting.get("size", 1) for one in done)
        images = [setting.get("size", 1) for setting in self._settings]
        left = sum(images) - sum(one.setting.get("size", 1) for one in done)
        workers = max(1, len(self._trials(TrialState.RUNNING)))
        time_left = timedelta(seconds=round(usual * left / workers))
        return f"{len(done)} of {len(images)}, about {time_left} left with {workers} worker{'s' * (workers > 1)}"
