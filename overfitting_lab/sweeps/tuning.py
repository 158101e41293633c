"""A search for the settings with the best validation, whose trials any number of workers share."""

import json
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import IO, Any

import optuna
from filelock import FileLock
from optuna.distributions import BaseDistribution, distribution_to_json
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from overfitting_lab.runs import Run, RunError
from overfitting_lab.runs.epochs import Monitor, is_maximized, value_of
from overfitting_lab.runs.files import write_text
from overfitting_lab.runs.text import duration
from overfitting_lab.sweeps.names import shown, trial_name
from overfitting_lab.sweeps.pruning import PRUNED, pruner
from overfitting_lab.sweeps.storage import begin_trial, keep_to, open_storage, open_study, running_trial
from overfitting_lab.sweeps.values import draw
from overfitting_lab.sweeps.workers import heartbeat, is_gone, release, still_running

SEARCH, CONFIRMATION = "search", "confirmation"  # the two studies of a tuner
UNTESTED = "a search tests its winner alone"
LOST = "the search begins anew"  # without its storage
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
STOPPED = (128 + signal.SIGINT, 128 + signal.SIGTERM)  # exit statuses of a trial that somebody stopped


@dataclass(frozen=True)
class SearchPlan:
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
    time: timedelta  # of start, training and validation


def study_of(storage: BaseStorage, folder: Path, kind: str, monitor: Monitor, epochs: int | None) -> optuna.Study:
    """Open or create one of the two studies of a tuner.

    Args:
        storage: holds the study.
        folder: holds the runs of the experiment.
        kind: ``SEARCH`` or ``CONFIRMATION``.
        monitor: the validation metric to optimize.
        epochs: the epochs of a trial; ``None`` if their number is unknown.
    """
    direction = StudyDirection.MAXIMIZE if is_maximized(monitor) else StudyDirection.MINIMIZE
    return open_study(storage, folder, kind, direction, pruner(epochs) if kind == SEARCH else None)


class Tuning:
    """A search and the confirmation of its winner.

    Each trial belongs to one worker at a time. If a worker stops, the next one resumes the trial's run, under the same
    number. The values of trial N depend on the seed, on N and on the trials that finished before it, so a single worker
    repeats the same search. A trial never sees the test images, and only the leading trial keeps its checkpoints.

    Args:
        folder: holds the runs of the experiment.
        plan: what all trials have in common.
        train: function of a study's kind, a trial's number and a file. It trains the trial, prints to the file and
            returns an exit status.
        storage: URL of a database, or path of Optuna's journal file; by default a journal file in ``folder``.

    Raises:
        RunError: if the storage cannot be used.
        UsageError: if the study began with other searches or fixed settings.
    """

    def __init__(
        self, folder: Path, plan: SearchPlan, train: Callable[[str, int, IO[str]], int], storage: str | None = None
    ) -> None:
        self.folder = folder
        self.monitor = plan.monitor
        self._plan = plan
        self._train = train
        self._lock = FileLock(folder / ".tuning.lock")
        self._tried: set[tuple[str, int]] = set()  # trials of this process
        self._storage = open_storage(folder, storage, LOST)
        self.search, self.confirmation = (
            study_of(self._storage, folder, kind, plan.monitor, plan.epochs) for kind in (SEARCH, CONFIRMATION)
        )
        searched = {f"--search {key}": json.loads(distribution_to_json(each)) for key, each in plan.searches.items()}
        plain = {**plan.fixed, "monitor": plan.monitor, "seed_everything": plan.seed, **searched}
        with self._lock:
            keep_to(self.search, "plan", plain, f"the search in {folder} was")

    def work(self, trials: int) -> bool:
        """Work on the search until it has ``trials`` trials. Return ``True`` if all of them are finished.

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
        return self._work(
            CONFIRMATION, lambda: self._next_confirmation(wanted), lambda: self._count(wanted), len(wanted)
        )

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
                f"{failed} run{'s' * (failed > 1)} failed; start this again to resume; a run that fails again is "
                "counted as pruned"
            )
        if done() < wanted:
            print(still_running(wanted - done()), flush=True)
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

    def _facts(self, kind: str, number: int) -> dict[str, Any]:
        """Return what is stored of a trial, such as its flags."""
        return self._study(kind).get_trials(deepcopy=False)[number].user_attrs

    def _abandoned(self, kind: str) -> optuna.Trial | None:
        running = self._study(kind).get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        left = (
            each.number for each in running if is_gone(each, self._storage) and (kind, each.number) not in self._tried
        )
        return next((running_trial(self._storage, self._study(kind), number) for number in left), None)

    def _next(self, trials: int) -> optuna.Trial | None:
        """Begin a trial if fewer than the wanted number were begun."""
        if len(self.search.get_trials(deepcopy=False)) >= trials:
            return None
        return self.search.ask()

    def _next_confirmation(self, wanted: Sequence[Mapping[str, Any]]) -> optuna.Trial | None:
        begun = [trial.user_attrs for trial in self.confirmation.get_trials(deepcopy=False)]
        for each in wanted:
            if not any(each.items() <= known.items() for known in begun):
                return begin_trial(self._storage, self.confirmation, each)
        return None

    def _count(self, wanted: Sequence[Mapping[str, Any]]) -> int:
        """Return how many of the wanted confirmations are finished."""
        done = [each.user_attrs for each in self.confirmation.get_trials(deepcopy=False, states=FINISHED)]
        return sum(any(each.items() <= known.items() for known in done) for each in wanted)

    def _make(self, kind: str, trial: optuna.Trial) -> bool:
        """Train a trial, or resume it, and tell the study its result. Return ``False`` if it failed.

        If it fails in a second process too, it is pruned: a third attempt would probably fail as well.
        """
        flags = self._flags(kind, trial)
        trial.set_user_attr("flags", flags)
        name = trial_name(trial.number) if kind == SEARCH else f"{kind} {trial.number + 1}"
        log = self.folder / "logs" / f"{name.replace(' ', '-')}.txt"
        log.parent.mkdir(exist_ok=True)
        print(f"begun      {name}: {' '.join(flags)}", flush=True)
        if run := self.run_of(kind, trial.number):
            run.files.wait_for_training()  # its worker was killed, but the process that trains may live
        result = self._result(kind, trial.number)
        if result is None:
            with log.open("a", encoding="utf-8") as output:
                status = self._train(kind, trial.number, output)
            result = self._result(kind, trial.number)
        if result is None:
            failure = f"exit status {status}; its output is in {log}"
            print(f"failed     {name}: {failure}", flush=True)
            if status in STOPPED or not self._facts(kind, trial.number).get("failed"):
                trial.set_user_attr("failed", status not in STOPPED)
                return False
            result = Result(TrialState.PRUNED, None, f"it failed twice, at last with {failure}", timedelta())
        with self._lock:
            with suppress(UpdateFinishedTrialError):  # another worker found this one gone, and told the same result
                if result.reason:
                    trial.set_user_attr("why", result.reason)
                self._study(kind).tell(trial.number, result.value, result.state, skip_if_finished=True)
            self._discard_checkpoints()
        if result.value is None:
            print(f"pruned     {name}: {result.reason}, {result.time}", flush=True)
        else:
            reached = f"{self.monitor} {shown(result.value, self.monitor)}, {result.time}"
            print(f"done       {name}: {reached}{self._best() if kind == SEARCH else ''}", flush=True)
        return True

    def _best(self) -> str:
        best = self.leader
        return f"; best so far: {trial_name(best.number)}, {shown(best.value or 0, self.monitor)}" if best else ""

    def _flags(self, kind: str, trial: optuna.Trial) -> list[str]:
        """Return the flags of a trial: values of the searched settings, and the seed of a confirmation."""
        if kind == CONFIRMATION:
            facts = trial.user_attrs
            of = [] if facts["of"] is None else self._facts(SEARCH, facts["of"])["flags"]
            return [*of, f"--seed_everything={facts['seed']}"]
        return draw(self.search, trial, self._plan.searches, self._plan.seed)

    def _result(self, kind: str, number: int) -> Result | None:
        """Return the result of a trial; ``None`` if its run did not come to its end.

        A run that cannot succeed counts as pruned: its settings are bad, and another attempt would end in the same way.
        """
        run = self.run_of(kind, number)
        if run is None:
            return None
        summary, time = run.summary, duration(run.summary.total_seconds)
        if hopeless := self._facts(kind, number).get("hopeless"):
            return Result(TrialState.PRUNED, None, hopeless, time)
        if summary.status != "finished":
            return None
        if summary.test is None and summary.untested != UNTESTED:
            write_text(run.files.summary, replace(summary, untested=UNTESTED).to_json())
        value = value_of(summary.best, self.monitor) if summary.best else None
        if (summary.reason or "").startswith(PRUNED):
            return Result(TrialState.PRUNED, None, (summary.reason or "").removeprefix(PRUNED), time)
        if value is None:
            return Result(TrialState.PRUNED, None, f"no validation has a finite {self.monitor}", time)
        return Result(TrialState.COMPLETE, value, "", time)

    def run_of(self, kind: str, number: int) -> Run | None:
        """Return the run of a trial; ``None`` if it has none, or one that was killed before its first record."""
        name = self._facts(kind, number).get("run")
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
        sign = -1 if is_maximized(self.monitor) else 1
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
        return [float(each.value or 0) for each in self._confirmations(TrialState.COMPLETE, of, seeds)]

    def diverged(self, of: int | None, seeds: int) -> int:
        """Return how many of these runs did not train to their end."""
        return len(self._confirmations(TrialState.PRUNED, of, seeds))

    def _confirmations(self, state: TrialState, of: int | None, seeds: int) -> list[FrozenTrial]:
        trials = self.confirmation.get_trials(deepcopy=False, states=(state,))
        among = range(self._plan.seed + 1, self._plan.seed + 1 + seeds)
        return [each for each in trials if each.user_attrs["of"] == of and each.user_attrs["seed"] in among]

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
