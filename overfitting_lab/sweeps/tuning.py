"""A search for the settings with the best validation, whose trials any number of workers share."""

import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import IO, Any

import numpy as np
import optuna
from filelock import FileLock
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
)
from optuna.trial import FrozenTrial, TrialState

from overfitting_lab.runs import Run, RunError
from overfitting_lab.runs.epochs import Monitor
from overfitting_lab.runs.files import write_text
from overfitting_lab.sweeps.pruning import PRUNED, pruner, shown
from overfitting_lab.sweeps.storage import open_storage
from overfitting_lab.sweeps.workers import heartbeat, is_gone, release

SEARCH, CONFIRMATION = "search", "confirmation"  # the two studies of a tuner
UNTESTED = "a search tests its winner alone"
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
DIGITS = 4  # of a searched number; more would only make it hard to read


class SearchError(Exception):
    """The searches are wrong, or the study began with others. The message names the remedy."""


@dataclass(frozen=True)
class Plan:
    """The facts that all trials of a search have in common.

    A search that began with another plan is refused.
    """

    searches: Mapping[str, BaseDistribution]  # the values that a setting may have, by its flag
    fixed: Mapping[str, Any]  # settings that decide the result, and the identity of the images
    monitor: Monitor
    seed: int
    epochs: int | None  # None if it is unknown


@dataclass(frozen=True)
class Result:
    """The end of a trial."""

    state: TrialState  # complete or pruned
    value: float | None  # best validation value; None if pruned
    reason: str  # why it was pruned
    time: timedelta  # of training


def open_study(
    folder: Path, kind: str, monitor: Monitor, epochs: int | None, storage: str | None = None
) -> optuna.Study:
    """Open or create one of the two studies of a tuner.

    Args:
        folder: holds the runs of the experiment.
        kind: ``SEARCH`` or ``CONFIRMATION``.
        monitor: the validation metric that is searched for.
        epochs: the epochs of a trial; ``None`` if their number is unknown.
        storage: URL of a database, or path of Optuna's journal file; by default a journal file in ``folder``.

    Raises:
        RunError: if the storage cannot be used.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".storage.lock"):  # if two workers start at once, one of them creates the tables
        return optuna.create_study(
            study_name=f"{folder.name}, {kind}",  # experiments may share a storage
            storage=open_storage(storage or str(folder / "optuna.journal"), "the search begins anew"),
            sampler=optuna.samplers.RandomSampler(),  # of the confirmation, where nothing is drawn
            pruner=pruner(epochs) if kind == SEARCH else optuna.pruners.NopPruner(),
            direction="maximize" if monitor == "val_acc" else "minimize",
            load_if_exists=True,
        )


def trial_of(study: optuna.Study, number: int) -> optuna.Trial:
    """Return a running trial of a study, for a process that did not begin it."""
    storage = study._storage
    of_study = storage.get_study_id_from_name(study.study_name)
    return optuna.Trial(study, storage.get_trial_id_from_study_id_trial_number(of_study, number))


class Tuning:
    """A search and the confirmation of its winner.

    Each trial belongs to one worker at a time. If a worker stops, the next one resumes the trial's run, under the same
    number. The values of trial N depend on the seed, on N and on the trials that finished before it. So one worker
    alone makes the same search again. A trial never sees the test images, and only the leading trial keeps its
    checkpoints.

    Args:
        folder: holds the runs of the experiment.
        plan: what all trials have in common.
        train: function of a study's kind, a trial's number and a file. It trains the trial and prints to the file.
        storage: URL of a database, or path of Optuna's journal file; by default a journal file in ``folder``.

    Raises:
        RunError: if the storage cannot be used.
        SearchError: if the study began with other searches or fixed settings.
    """

    def __init__(
        self, folder: Path, plan: Plan, train: Callable[[str, int, IO[str]], int], storage: str | None = None
    ) -> None:
        self.folder = folder
        self.monitor = plan.monitor
        self._plan = plan
        self._train = train
        self._lock = FileLock(folder / ".tuning.lock")
        self._tried: set[tuple[str, int]] = set()  # trials of this process
        self.search, self.confirmation = (
            open_study(folder, kind, plan.monitor, plan.epochs, storage) for kind in (SEARCH, CONFIRMATION)
        )
        searched = {f"--search {key}": json.loads(distribution_to_json(each)) for key, each in plan.searches.items()}
        plain = {**plan.fixed, "monitor": plan.monitor, "seed_everything": plan.seed, **searched}
        with self._lock:
            self._compare(json.loads(json.dumps(plain)))

    def _compare(self, plain: dict[str, Any]) -> None:
        begun = self.search.user_attrs.get("plan")
        if begun is None:
            self.search.set_user_attr("plan", plain)
        elif begun != plain:
            differ = sorted(key for key in begun.keys() | plain.keys() if begun.get(key) != plain.get(key))
            raise SearchError(
                f"the search in {self.folder} was begun with other settings ({', '.join(differ)}); give these again, "
                "or keep this search apart: --experiment NAME"
            )

    def work(self, trials: int) -> bool:
        """Work on the search until it has so many trials in all. Return ``True`` if all of them are finished.

        Raises:
            RunError: at the end, if a run failed.
        """
        return self._work(SEARCH, lambda: self._next(trials), lambda: len(self.finished()), trials)

    def confirm(self, seeds: int) -> bool:
        """Train the winner and the configuration's own values with other seeds. Return ``True`` if all is done.

        Raises:
            RunError: at the end, if a run failed.
        """
        wanted = [
            {"of": of, "seed": self._plan.seed + 1 + index}
            for index in range(seeds)
            for of in (self.winner.number, None)
        ]
        return self._work(CONFIRMATION, lambda: self._next_confirmation(wanted), self._confirmed(wanted), len(wanted))

    def _work(
        self, kind: str, following: Callable[[], optuna.Trial | None], done: Callable[[], int], wanted: int
    ) -> bool:
        failed = 0
        while True:
            with self._claimed(kind, following) as trial:
                if trial is None:
                    break
                failed += not self._make(kind, trial)
                print(f"           {done()} of {wanted} are done", flush=True)
        if failed:
            raise RunError(
                f"{failed} runs failed; start this again to resume them, or give fewer --trials or --confirm"
            )
        if done() < wanted:
            print("some trials are with other workers; start this again when they have finished", flush=True)
        return done() >= wanted

    @contextmanager
    def _claimed(self, kind: str, following: Callable[[], optuna.Trial | None]) -> Iterator[optuna.Trial | None]:
        """Claim a trial whose worker is gone, else the following one; ``None`` if there is nothing left to do."""
        claim = ExitStack()
        with self._lock:
            trial = self._abandoned(kind) or following()
            if trial is not None:
                self._tried.add((kind, trial.number))
                claim.enter_context(heartbeat(trial))
        try:
            yield trial
        finally:
            claim.close()
            if trial is not None:
                release(trial)

    def _study(self, kind: str) -> optuna.Study:
        return self.search if kind == SEARCH else self.confirmation

    def _abandoned(self, kind: str) -> optuna.Trial | None:
        running = self._study(kind).get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        left = (each.number for each in running if is_gone(each) and (kind, each.number) not in self._tried)
        return next((trial_of(self._study(kind), number) for number in left), None)

    def _next(self, trials: int) -> optuna.Trial | None:
        """Begin a trial if fewer than the wanted number were begun."""
        if len(self.search.get_trials(deepcopy=False)) >= trials:
            return None
        return self.search.ask()

    def _next_confirmation(self, wanted: Sequence[Mapping[str, Any]]) -> optuna.Trial | None:
        begun = [trial.user_attrs for trial in self.confirmation.get_trials(deepcopy=False)]
        for each in wanted:
            if not any(each.items() <= known.items() for known in begun):
                self.confirmation.enqueue_trial({}, user_attrs=dict(each))
                return self.confirmation.ask()
        return None

    def _confirmed(self, wanted: Sequence[Mapping[str, Any]]) -> Callable[[], int]:
        def count() -> int:
            done = [each.user_attrs for each in self.confirmation.get_trials(deepcopy=False, states=FINISHED)]
            return sum(any(each.items() <= known.items() for known in done) for each in wanted)

        return count

    def _make(self, kind: str, trial: optuna.Trial) -> bool:
        """Train a trial, or resume it, and tell the study its result. Return ``False`` if it failed."""
        flags = self._flags(kind, trial)
        trial.set_user_attr("flags", flags)
        name = f"{'trial' if kind == SEARCH else kind} {trial.number}"
        log = self.folder / "logs" / f"{name.replace(' ', '-')}.txt"
        log.parent.mkdir(exist_ok=True)
        print(f"begun      {name}: {' '.join(flags)}", flush=True)
        if run := self.run_of(kind, trial.number):
            run.files.wait_for_training()  # its worker was killed, but the process that trains may live
        result = self._result(kind, trial.number)
        if result is None:
            with log.open("a") as output:
                status = self._train(kind, trial.number, output)
            result = self._result(kind, trial.number)
        if result is None:
            print(f"failed     {name}: exit status {status}; its output is in {log}", flush=True)
            return False
        if result.reason:
            trial.set_user_attr("why", result.reason)
        with self._lock:
            self._study(kind).tell(trial.number, result.value, result.state)
            self._discard_checkpoints()
        if result.value is None:
            print(f"pruned     {name}: {result.reason}, {result.time}", flush=True)
        else:
            reached = f"{self.monitor} {shown(result.value, self.monitor)}, {result.time}"
            print(f"done       {name}: {reached}{self._best() if kind == SEARCH else ''}", flush=True)
        return True

    def _best(self) -> str:
        best = self.leader
        return f"; best so far: trial {best.number}, {shown(best.value or 0, self.monitor)}" if best else ""

    def _flags(self, kind: str, trial: optuna.Trial) -> list[str]:
        """Return the flags of a trial: values of the searched settings, and the seed of a confirmation."""
        if kind == CONFIRMATION:
            facts = trial.user_attrs
            of = [] if facts["of"] is None else self.search.get_trials(deepcopy=False)[facts["of"]].user_attrs["flags"]
            return [*of, f"--seed_everything={facts['seed']}"]
        seed = np.random.SeedSequence([self._plan.seed, trial.number]).generate_state(1)[0]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            # Weights and rates act together, so the sampler models them together. While other workers train, their
            # trials count as bad ones, so that this one is elsewhere.
            self.search.sampler = optuna.samplers.TPESampler(seed=int(seed), multivariate=True, constant_liar=True)
        return [f"--{key}={_suggest(trial, key, values)}" for key, values in self._plan.searches.items()]

    def _result(self, kind: str, number: int) -> Result | None:
        """Return the result of a trial; ``None`` if its run did not come to its end.

        A run that cannot succeed counts as pruned: its settings are bad, and another attempt would end in the same way.
        """
        run = self.run_of(kind, number)
        if run is None:
            return None
        summary, time = run.summary, timedelta(seconds=round(run.summary.seconds))
        if hopeless := self._study(kind).get_trials(deepcopy=False)[number].user_attrs.get("hopeless"):
            return Result(TrialState.PRUNED, None, hopeless, time)
        if summary.status != "finished":
            return None
        if summary.test is None and summary.untested != UNTESTED:
            write_text(run.files.summary, replace(summary, untested=UNTESTED).to_json())
        value = getattr(summary.best, self.monitor) if summary.best else None
        if (summary.reason or "").startswith(PRUNED):
            return Result(TrialState.PRUNED, None, (summary.reason or "").removeprefix(PRUNED), time)
        if value is None:
            return Result(TrialState.PRUNED, None, f"no validation has a finite {self.monitor}", time)
        return Result(TrialState.COMPLETE, value, "", time)

    def run_of(self, kind: str, number: int) -> Run | None:
        """Return the run of a trial; ``None`` if it has none, or one that was killed before its first record."""
        name = self._study(kind).get_trials(deepcopy=False)[number].user_attrs.get("run")
        try:
            run = Run(self.folder / name) if name else None
        except RunError:
            return None
        return None if run is None or run.status == "unknown" else run

    def finished(self) -> list[FrozenTrial]:
        """Return the trials of the search that are complete or pruned, by number."""
        return self.search.get_trials(deepcopy=False, states=FINISHED)

    def complete(self) -> list[FrozenTrial]:
        """Return the trials of the search that trained to their end, the best first, of equals the first."""
        sign = -1 if self.monitor == "val_acc" else 1
        trials = self.search.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        return sorted(trials, key=lambda trial: (sign * (trial.value or 0), trial.number))

    @property
    def leader(self) -> FrozenTrial | None:
        """The best trial so far; ``None`` before one is complete."""
        return next(iter(self.complete()), None)

    @property
    def winner(self) -> FrozenTrial:
        """The best trial.

        Raises:
            RunError: if no trial trained to its end.
        """
        if self.leader is None:
            raise RunError("no trial trained to its end, so there is no winner; see the logs, or search other ranges")
        return self.leader

    def confirmed(self, of: int | None, seeds: int) -> list[float]:
        """Return the values of a trial's settings, or of the configuration's own, with the other seeds."""
        trials = self.confirmation.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        among = range(self._plan.seed + 1, self._plan.seed + 1 + seeds)
        return [each.value for each in trials if each.user_attrs["of"] == of and each.user_attrs["seed"] in among]  # type: ignore[misc]

    def tested(self) -> int:
        """Return how many trials have seen the test images: the winner, and those that won before more trials."""
        runs = (self.run_of(SEARCH, trial.number) for trial in self.complete())
        return sum(run is not None and run.summary.test is not None for run in runs)

    def _discard_checkpoints(self) -> None:
        """Discard checkpoints and weights of all runs but the leading one; they are most of a run's size."""
        leader = self.leader and self.leader.number
        finished = [(SEARCH, each.number) for each in self.finished() if each.number != leader]
        confirmed = self.confirmation.get_trials(deepcopy=False, states=FINISHED)
        for kind, number in finished + [(CONFIRMATION, each.number) for each in confirmed]:
            if run := self.run_of(kind, number):
                for path in (*run.files.checkpoints.rglob("*.*"), run.files.weights):
                    path.unlink(missing_ok=True)


def _suggest(trial: optuna.Trial, key: str, values: BaseDistribution) -> Any:
    """Return the trial's value of a setting, drawn if it has none."""
    if isinstance(values, CategoricalDistribution):
        return trial.suggest_categorical(key, values.choices)
    if isinstance(values, IntDistribution):
        return trial.suggest_int(key, values.low, values.high, log=values.log)
    assert isinstance(values, FloatDistribution)
    return f"{trial.suggest_float(key, values.low, values.high, log=values.log):.{DIGITS}g}"
