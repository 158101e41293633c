"""Trials of an ablation, each a run of ``fit.py``, handed out to any number of workers by Optuna."""

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any

import optuna
import yaml
from filelock import FileLock
from optuna.storages import JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState

from overfitting_lab.cli.experiment import ExperimentCLI
from overfitting_lab.cli.finished import finished_run
from overfitting_lab.runs.provenance import masked
from overfitting_lab.runs.run import Run, RunError, flat, recipe, runs_of
from overfitting_lab.sweeps.factorial import Trial

FLAGS = {
    "dropout": "--model.dropout",
    "weight_decay": "--model.optimizer.weight_decay",
    "augment": "--data.augment",
    "size": "--data.train_size",
    "seed": "--seed_everything",
}
BEAT = 60  # seconds between two signs of life of a worker
GONE = 300  # seconds without one after which its trial is another's
USAGE = 2  # exit status of settings that fit.py does not take


class Ablation:
    """A full grid of settings, each trained once, by whoever asks for the next.

    Which trial is whose, and what came of it, is in Optuna's storage: workers that share it share the work. A worker
    that is stopped leaves its trial to the next one, which goes on with the run where that was. Of a run that a trial
    makes all is kept but the checkpoints.

    Args:
        name: of the study in the storage.
        grid: the values of each of some of :data:`FLAGS`.
        arguments: of ``fit.py``, the same for all trials.
        storage: the URL of a database, or the path of Optuna's journal file; none puts the journal beside the runs.

    Raises:
        RunError: if the study was begun with other arguments.
    """

    def __init__(
        self, name: str, grid: Mapping[str, Sequence[Any]], arguments: Sequence[str], storage: str | None
    ) -> None:
        cli = ExperimentCLI([*arguments], keep=False)
        self.folder = Path(cli.config.trainer.default_root_dir or ".") / "lightning_logs" / cli.config.experiment
        self.folder.mkdir(parents=True, exist_ok=True)
        self._grid = {key: list(values) for key, values in grid.items()}
        self._arguments = list(arguments)
        self._worker = f"{socket.gethostname()}:{os.getpid()}"
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        name = f"{cli.config.experiment}, {name}"  # experiments may share a storage
        with FileLock(self.folder / ".storage.lock"):  # of two workers that begin at once, one makes the tables
            trials = _storage(storage or str(self.folder / "optuna.journal"))
            # The grid's sampler can be told of an end within optimize alone; other workers' are noted by this handle.
            self._book = optuna.create_study(study_name=name, storage=trials, direction="maximize", load_if_exists=True)
        grid_sampler = optuna.samplers.GridSampler(self._grid, seed=0)
        self._study = optuna.load_study(study_name=name, storage=trials, sampler=grid_sampler)
        cli.datamodule.prepare_data()
        settings = flat(yaml.safe_load(cli.complete_config))
        self._check_same({**recipe(settings, {}), "the images": cli.datamodule.source.load().identity})

    def _check_same(self, settings: dict[str, Any]) -> None:
        """Refuses to mix trials of other settings into a study."""
        varied = {flag.removeprefix("--") for flag in FLAGS.values()}
        fixed = json.loads(json.dumps({key: value for key, value in settings.items() if key not in varied}))
        begun = self._study.user_attrs.get("fixed")
        if begun is None:
            self._study.set_user_attr("fixed", fixed)
        elif begun != fixed:
            differ = sorted(key for key in begun.keys() | fixed.keys() if begun.get(key) != fixed.get(key))
            raise RunError(
                f"the trials in {self.folder} were begun with other settings ({', '.join(differ)}); "
                "keep these apart: --experiment NAME"
            )

    def work(self) -> None:
        """Takes trials until none is left, printing two lines each.

        Raises:
            RunError: at the end, if a run failed.
        """
        self._take_over(also_failed=True)
        while self._left():
            self._study.optimize(self._objective, n_trials=1, catch=RunError)
            self._take_over(also_failed=False)
        others = len(self._trials(TrialState.RUNNING))
        if others:
            print(f"{others} trials are with other workers; start this again when they are through", flush=True)
        failed = len(self._trials(TrialState.FAIL))
        if failed:
            raise RunError(f"{failed} runs failed; start this again to try them once more")

    @property
    def complete(self) -> bool:
        """Whether every setting has its trial."""
        return len(self._trials(TrialState.COMPLETE)) == len(self._settings())

    def results(self) -> list[Trial]:
        """What came of the complete trials of the grid's settings, those of further seeds among them."""
        trials = self._trials(TrialState.COMPLETE, any_of=("seed",))
        return [Trial(**trial.user_attrs["result"]) for trial in trials]

    def _trials(self, state: TrialState, any_of: Sequence[str] = ()) -> list[FrozenTrial]:
        """The trials in the grid, one a setting: the last; of the keys in ``any_of``, any value."""
        found = {}
        for trial in self._study.get_trials(deepcopy=False):
            setting = trial.params
            if (
                setting.keys() == self._grid.keys()
                and trial.state != TrialState.PRUNED
                and all(setting[key] in values for key, values in self._grid.items() if key not in any_of)
            ):
                found[tuple(setting[key] for key in self._grid)] = trial
        return [trial for trial in found.values() if trial.state == state]

    def _settings(self) -> list[dict[str, Any]]:
        settings: list[dict[str, Any]] = [{}]
        for key, values in self._grid.items():
            settings = [{**setting, key: value} for setting in settings for value in values]
        return settings

    def _waiting(self) -> list[dict[str, Any]]:
        """The settings that wait to be made again."""
        trials = self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        return [trial.system_attrs["fixed_params"] for trial in trials]

    def _left(self) -> list[dict[str, Any]]:
        """The settings that no worker has begun, and those that wait to be made again."""
        states = (TrialState.COMPLETE, TrialState.RUNNING, TrialState.FAIL)
        begun = [trial.params for state in states for trial in self._trials(state)]
        waiting = self._waiting()
        return [setting for setting in self._settings() if setting not in begun or setting in waiting]

    def _is_another(self, number: int, setting: dict[str, Any]) -> bool:
        """Whether an earlier trial has the setting, which two workers may have taken at the same moment."""
        states = (TrialState.COMPLETE, TrialState.RUNNING)
        return any(
            trial.params == setting and trial.number != number and (trial.state.is_finished() or trial.number < number)
            for trial in self._study.get_trials(deepcopy=False, states=states)
        )

    def _take_over(self, *, also_failed: bool) -> None:
        """Has trials made again whose worker is gone, or whose run failed before this command was started."""
        gone = [trial for trial in self._trials(TrialState.RUNNING) if _is_gone(trial)]
        for trial in gone:
            self._book.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
        waiting = self._waiting()
        for trial in self._trials(TrialState.FAIL) if also_failed else gone:
            if trial.params in waiting:
                continue
            attributes = {**trial.system_attrs, "fixed_params": trial.params}  # with its place in the sampler's grid
            self._study.add_trial(optuna.trial.create_trial(state=TrialState.WAITING, system_attrs=attributes))

    def _objective(self, trial: optuna.Trial) -> float:
        """Makes a trial's run; its test accuracy.

        Raises:
            TrialPruned: if another worker has the setting.
            RunError: if the run fails.
        """
        setting = {key: _suggest(trial, key, values) for key, values in self._grid.items()}
        if self._is_another(trial.number, setting):
            raise optuna.TrialPruned
        name = ", ".join(f"{key} {value}" for key, value in setting.items())
        log = self.folder / "logs" / f"{name.replace(', ', ',').replace(' ', '=')}.txt"
        log.parent.mkdir(exist_ok=True)
        flags = [f"{FLAGS[key]}={value}" for key, value in setting.items()]
        there = [run.folder for run in runs_of(self.folder) if run.finished]
        print(f"begun      {name}", flush=True)
        with log.open("a") as output, self._alive(trial):
            try:
                run = finished_run([*self._arguments, *flags], output)
                result = _result(run, setting)
            except (RunError, SystemExit) as error:
                if isinstance(error, SystemExit) and error.code != USAGE:
                    raise
                print(f"failed     {name}: {error}; what it said is in {log}", flush=True)
                raise RunError(str(error)) from error
        for path in (run.folder / "checkpoints").glob("*.ckpt") if run.folder not in there else ():
            path.unlink(missing_ok=True)  # most of a run's size; what came of it is in the folder, its weights among it
        trial.set_user_attr("result", result)
        print(
            f"done       {name}: test accuracy {result['test_acc']:.1%}, gap {100 * result['gap']:.1f} points, "
            f"{timedelta(seconds=round(result['seconds']))}; {self._progress(result)}",
            flush=True,
        )
        return float(result["test_acc"])

    def _progress(self, result: Mapping[str, Any]) -> str:
        """How many trials are through with the one that just ended, and the time that is left, by numbers of images."""
        done = [trial.user_attrs["result"] for trial in self._trials(TrialState.COMPLETE)] + [result]
        usual = median(one["seconds"] / one["setting"].get("size", 1) for one in done)
        images = [setting.get("size", 1) for setting in self._settings()]
        left = sum(images) - sum(one["setting"].get("size", 1) for one in done)
        workers = max(1, len(self._trials(TrialState.RUNNING)))
        time_left = timedelta(seconds=round(usual * left / workers))
        return f"{len(done)} of {len(images)}, about {time_left} left with {workers} worker{'s' * (workers > 1)}"

    @contextlib.contextmanager
    def _alive(self, trial: optuna.Trial) -> Iterator[None]:
        """Shows the other workers that this one has the trial, and is alive."""
        ended = threading.Event()
        trial.set_user_attr("worker", self._worker)

        def beat() -> None:
            while True:
                with contextlib.suppress(Exception):  # of any storage; the next one may come through
                    trial.set_user_attr("alive", time.time())
                if ended.wait(BEAT):
                    return

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join(BEAT)  # not for ever where the network to a database is gone


def refuse_varied(flags: Sequence[str]) -> None:
    """Refuses flags of ``fit.py`` that the trials set.

    Raises:
        RunError: if there is one.
    """
    for flag in flags:
        if flag.partition("=")[0] in FLAGS.values():
            raise RunError(f"{flag}: the trials set that themselves; see --train_size, --seeds and --sizes")


def _suggest(trial: optuna.Trial, key: str, values: list[Any]) -> Any:
    """The value that the sampler has for the trial; of whole numbers a study may be given more later."""
    if all(isinstance(value, int) for value in values):
        return trial.suggest_int(key, 0, 2**32 - 1)
    return trial.suggest_categorical(key, values)


def _storage(place: str) -> optuna.storages.BaseStorage:
    """The storage at a database's URL, or in a journal file.

    Raises:
        RunError: if it cannot be opened or read.
    """
    try:
        if "://" in place:
            patient = {"connect_args": {"timeout": 60}} if place.startswith("sqlite") else None  # others write, too
            return RDBStorage(place, engine_kwargs=patient)
        # Optuna's other lock, a symbolic link, is never taken from a dead worker where the path is a relative one.
        return JournalStorage(JournalFileBackend(place, JournalFileOpenLock(place)))
    except Exception as error:  # of any driver
        remedy = "give a URL that SQLAlchemy takes" if "://" in place else "move it away: finished runs are found again"
        raise RunError(f"--storage {masked(place)} cannot be used ({type(error).__name__}); {remedy}") from error


def _is_gone(trial: FrozenTrial) -> bool:
    host, _, process = trial.user_attrs.get("worker", "").rpartition(":")
    if os.name == "posix" and host == socket.gethostname():
        try:
            os.kill(int(process), 0)
        except ProcessLookupError:
            return True
        except PermissionError:  # another user's
            pass
    begun = trial.datetime_start.timestamp() if trial.datetime_start else 0.0
    return time.time() - float(trial.user_attrs.get("alive", begun)) > GONE


def _result(run: Run, setting: dict[str, Any]) -> dict[str, Any]:
    """The fields of :class:`Trial`, from a run's summary."""
    summary = run.summary
    versions = summary["versions"]
    if "last" not in summary:
        raise RunError(
            f"{run.folder} had no validation, which an ablation needs: leave --trainer.limit_val_batches out"
        )
    return {
        "setting": setting,
        "test_acc": summary["test"]["acc"],
        "train_acc": summary["last"]["train_acc"],
        "val_acc": summary["last"]["val_acc"],
        "gap": summary["generalization_gap"],
        "seconds": summary["seconds"],
        "epochs": summary["epochs"],
        "origin": {
            "data": f"{summary['data']['name']} ({summary['data']['identity'][:12]})",
            "device": f"{summary['world_size']} x {summary['device']}",
            "precision": summary["precision"],
            **{name: versions[name] for name in ("python", "torch", "lightning")},
            "commit": summary["git_commit"],
        },
    }
