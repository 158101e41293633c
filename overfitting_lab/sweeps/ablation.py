"""Trials of an ablation, each one run of ``fit.py``, which Optuna shares out among any number of workers."""

import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from itertools import product
from math import prod
from pathlib import Path
from statistics import median
from typing import IO, Any

import optuna
from filelock import FileLock
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from overfitting_lab.runs import Run, RunError, runs_of
from overfitting_lab.runs.provenance import without_password
from overfitting_lab.runs.recipe import LATER
from overfitting_lab.runs.text import duration
from overfitting_lab.sweeps.designs import Cell
from overfitting_lab.sweeps.factors import SEED, SUBSET
from overfitting_lab.sweeps.storage import begin_trial, keep_to, open_storage, open_study, running_trial
from overfitting_lab.sweeps.trial import Trial, result_of
from overfitting_lab.sweeps.workers import heartbeat, is_gone, release, still_running

LENGTHS = ("size", "train_size", "max_epochs")  # factors to which the duration of a trial is proportional
LONGEST = 200  # characters in the name of a log


class Ablation:
    """The cells of a design, each trained once for every subset and seed.

    Optuna's storage records each trial's worker and result, so that workers with the same storage share the work. If a
    worker stops, the next one resumes its run. A trial discards the checkpoints of the run that it trained.

    Args:
        name: name of the study in the storage. A study may get further levels, subsets and seeds later.
        cells: levels of the factors, by name.
        subsets: number of sets of training images.
        seeds: number of seeds.
        folder: holds the runs of the experiment.
        fixed: the settings that all trials have in common, as plain values.
        train: function that takes a setting and a file; it finds or trains the run and prints to the file.
        storage: URL of a database, or path of Optuna's journal file; by default a journal file in ``folder``.

    Raises:
        RunError: if the storage cannot be used.
        UsageError: if the study began with other fixed settings.
    """

    def __init__(
        self,
        name: str,
        cells: Sequence[Cell],
        subsets: int,
        seeds: int,
        folder: Path,
        fixed: Mapping[str, Any],
        train: Callable[[Mapping[str, Any], IO[str]], Run],
        storage: str | None = None,
    ) -> None:
        self.folder = folder
        sets = [{SUBSET.name: subset} for subset in range(subsets)] if subsets > 1 else [{}]
        self._settings = [
            {**cell, **which, SEED.name: seed} for cell, which, seed in product(cells, sets, range(seeds))
        ]
        self._train = train
        self._storage = open_storage(folder, storage, "finished runs are found again")
        self._study = open_study(self._storage, folder, name)
        with FileLock(folder / ".plan.lock"):  # two workers may begin at the same moment
            keep_to(self._study, "fixed", fixed, f"the trials in {folder} were")

    def work(self) -> bool:
        """Work on trials until none is left. Print two lines for each. Return ``True`` if every setting has its result.

        Raises:
            RunError: at the end, if a run failed.
        """
        retried = {trial.number for trial in self._trials(TrialState.FAIL)}
        try:
            while left := self._settings_left(retried):
                self._make(begin_trial(self._storage, self._study, {"setting": left[0]}), left[0])
        except (KeyboardInterrupt, SystemExit):
            command = without_password(shlex.join(["python", *sys.argv]))
            print(f"stopped    resume with the same command: {command}", flush=True)
            raise
        others = len(self._trials(TrialState.RUNNING))
        if others:
            print(still_running(others), flush=True)
        failed = len(self._trials(TrialState.FAIL))
        if failed:
            raise RunError(f"{failed} run{'s' * (failed > 1)} failed; start this again to try once more")
        return len(self._trials(TrialState.COMPLETE)) == len(self._settings)

    def results(self) -> list[Trial]:
        """Return the results of the cells and subsets, with any seed."""
        fixed = self._study.user_attrs["fixed"]
        found = [trial.user_attrs["result"] for trial in self._trials(TrialState.COMPLETE, any_seed=True)]
        monitors = [{**LATER, **fixed, **result["setting"]}["monitor"] for result in found]  # older results lack it
        return [Trial(**{"monitor": monitor, **result}) for monitor, result in zip(monitors, found, strict=True)]

    def _trials(self, *states: TrialState, any_seed: bool = False) -> list[FrozenTrial]:
        """Return the trial of each setting, if it is in one of the states.

        Of several trials with a setting, a complete one counts, else a running one, else the last.
        """
        found = {}
        wanted = {_key(setting, any_seed) for setting in self._settings}
        trials = self._study.get_trials(deepcopy=False)
        complete, running = TrialState.COMPLETE, TrialState.RUNNING
        for trial in sorted(trials, key=lambda trial: (trial.state == complete, trial.state == running, trial.number)):
            setting = _setting(trial)
            if trial.state != TrialState.PRUNED and _key(setting, any_seed) in wanted:
                found[_key(setting)] = trial
        return [trial for trial in found.values() if trial.state in states]

    def _settings_left(self, retried: set[int]) -> list[dict[str, Any]]:
        """Return the settings without a trial, and those of failed trials to retry, given by number.

        Trials whose worker is gone are marked as failed, without a failure to show, and are left for any worker.
        """
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if is_gone(trial, self._storage):
                self._tell(trial.number, TrialState.FAIL)
        trials = self._trials(TrialState.COMPLETE, TrialState.RUNNING)
        trials += [trial for trial in self._trials(TrialState.FAIL) if "failure" in trial.user_attrs]
        begun = {_key(_setting(trial)) for trial in trials if trial.number not in retried}
        return [setting for setting in self._settings if _key(setting) not in begun]

    def _make(self, trial: optuna.Trial, setting: Mapping[str, Any]) -> None:
        """Find or train a trial's run and tell the study its result, unless another trial has the setting."""
        for other in self._study.get_trials(deepcopy=False):
            # Two workers may choose the same setting at the same moment. The earlier trial has it, or a finished one.
            earlier = other.state == TrialState.RUNNING and other.number < trial.number
            if (earlier or other.state == TrialState.COMPLETE) and _key(_setting(other)) == _key(setting):
                self._tell(trial.number, TrialState.PRUNED)
                return
        name = ", ".join(f"{key} {value}" for key, value in setting.items())
        stem = name.replace(", ", ",").replace(" ", "=").replace("/", "-")
        log = self.folder / "logs" / f"{stem if len(stem) <= LONGEST else f'{stem[:LONGEST]}-{trial.number}'}.txt"
        log.parent.mkdir(exist_ok=True)
        before = {run.folder for run in runs_of(self.folder)}
        begun = time.monotonic()
        print(f"begun      {name}", flush=True)
        try:
            with log.open("a", encoding="utf-8") as output, heartbeat(trial):
                run = self._train(setting, output)
                result = result_of(run, setting)
        except RunError as error:
            print(f"failed     {name}: {error}; its output is in {log}", flush=True)
            self._tell(trial.number, TrialState.FAIL, facts={"failure": str(error)})
            return
        except BaseException:
            release(trial)
            raise
        training = run.summary.seconds  # with validation; the rest is the start and the test
        took = {"training": training, "rest": time.monotonic() - begun - training}
        facts = {"result": asdict(result), **({"took": took} if run.folder not in before else {})}
        self._tell(trial.number, TrialState.COMPLETE, result.test_acc, facts)
        print(
            f"done       {name}: test accuracy {result.test_acc:.1%}, gap {100 * result.gap:.1f} points, "
            f"{duration(result.seconds)}; {self._progress()}",
            flush=True,
        )

    def _tell(
        self, number: int, state: TrialState, value: float | None = None, facts: Mapping[str, Any] | None = None
    ) -> None:
        """Tell the study the end of a trial, unless it has ended. Another worker may have found this one gone."""
        with suppress(UpdateFinishedTrialError):
            for name, fact in (facts or {}).items():
                running_trial(self._storage, self._study, number).set_user_attr(name, fact)
            self._study.tell(number, value, state, skip_if_finished=True)

    def _progress(self) -> str:
        """Return how many trials are done, and the time left.

        The estimate assumes that the time to train grows with the number of images and of epochs, and that every run
        needs the same time for its start and its test. It is made of trials whose runs were trained from their start
        here. Without one, there is no estimate.
        """
        done = self._trials(TrialState.COMPLETE)
        progress = f"{len(done)} of {len(self._settings)}"
        trained = [(trial.user_attrs["took"], _length(_setting(trial))) for trial in done if "took" in trial.user_attrs]
        if not trained:
            return progress
        usual = median(took["training"] / length for took, length in trained)
        left = usual * (sum(map(_length, self._settings)) - sum(_length(_setting(trial)) for trial in done))
        left += median(took["rest"] for took, _ in trained) * (len(self._settings) - len(done))
        workers = 1 + len(self._trials(TrialState.RUNNING))
        time_left = duration(left / workers)
        return f"{progress}, about {time_left} left with {workers} worker{'s' * (workers > 1)}"


def _setting(trial: FrozenTrial) -> dict[str, Any]:
    """Return a trial's levels, its subset if there are several, and its seed. Older trials have them as parameters."""
    return dict(trial.user_attrs.get("setting") or trial.system_attrs.get("fixed_params", trial.params))


def _key(setting: Mapping[str, Any], any_seed: bool = False) -> frozenset[tuple[str, Any]]:
    return frozenset({SUBSET.name: 0, **setting, **({SEED.name: None} if any_seed else {})}.items())


def _length(setting: Mapping[str, Any]) -> float:
    levels = (setting.get(name) for name in LENGTHS)
    return float(prod(level for level in levels if isinstance(level, int | float)))
