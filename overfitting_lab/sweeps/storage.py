"""Studies of Optuna, in a database or a journal file that any number of workers share."""

import json
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock
from optuna.pruners import BasePruner, NopPruner
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.study import StudyDirection
from optuna.trial import TrialState, create_trial

from overfitting_lab.runs import UsageError
from overfitting_lab.runs.recipe import LATER, RENAMED
from overfitting_lab.sweeps.database import PatientStorage, StorageError
from overfitting_lab.sweeps.workers import this_worker

GRACE = 30  # seconds after which the lock of a journal file counts as left behind by a dead worker
PATIENCE = 600  # seconds in which a worker waits for a database that does not answer
# The same within a trial. Training waits for it, and the other processes of a run must not lose their patience.
TRIAL_PATIENCE = 20


def open_storage(folder: Path, place: str | None, lost: str, *, of_trial: bool = False) -> BaseStorage:
    """Open a storage, or create it.

    Args:
        folder: holds the runs of the experiment.
        place: URL of a database, or path of a journal file; by default a journal file in ``folder``.
        lost: says in an error's message what happens if a damaged journal file is moved away.
        of_trial: the process trains a trial for a worker that had opened the storage.

    Raises:
        StorageError: if it cannot be opened or read.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    folder.mkdir(parents=True, exist_ok=True)
    place = place or str(folder / "optuna.journal")
    with FileLock(folder / ".storage.lock"):  # if two workers start at once, one of them creates the tables
        if "://" in place:
            return PatientStorage(place, TRIAL_PATIENCE if of_trial else PATIENCE, known=of_trial)
        try:
            # Optuna's other lock, a symbolic link, is never taken from a dead worker if the path is a relative one.
            return JournalStorage(JournalFileBackend(place, JournalFileOpenLock(place, GRACE)))
        except Exception as error:  # of any content
            reason = f"{type(error).__name__}: {error}"
            other = "name a file in a folder that is there, or a database's URL"
            remedy = f"move it away: {lost}" if Path(place).is_file() else other
            raise StorageError(f"--storage {place} cannot be used ({reason}); {remedy}") from error


def open_study(
    storage: BaseStorage,
    folder: Path,
    name: str,
    direction: StudyDirection = StudyDirection.MAXIMIZE,
    pruner: BasePruner | None = None,
) -> optuna.Study:
    """Open a study of the experiment in ``folder``, or create it."""
    return optuna.create_study(
        study_name=f"{folder.name}, {name}",  # experiments may share a storage
        storage=storage,
        sampler=optuna.samplers.RandomSampler(),  # for trials that draw nothing
        pruner=pruner or NopPruner(),
        direction=direction,
        load_if_exists=True,
    )


def keep_to(study: optuna.Study, name: str, plan: Mapping[str, Any], what: str) -> None:
    """Record what all trials of a study have in common, or refuse a study that began with something else.

    Args:
        study: of the trials.
        name: of the record.
        plan: the common settings, as plain values.
        what: begins the message.

    Raises:
        UsageError: if the study began with other settings.
    """
    plain = json.loads(json.dumps(dict(plan)))
    text = json.dumps(study.user_attrs.get(name))
    for before, now in RENAMED.items():
        text = text.replace(f'"{before}"', f'"{now}"')
    begun = json.loads(text)
    if begun is None:
        study.set_user_attr(name, plain)
        return
    begun = {key: value for key, value in LATER.items() if key in plain} | begun
    if differ := sorted(key for key in begun.keys() | plain.keys() if begun.get(key) != plain.get(key)):
        raise UsageError(
            f"{what} begun with other settings ({', '.join(differ)}); give these again, or keep the new ones apart: "
            "--experiment NAME"
        )


def begin_trial(storage: BaseStorage, study: optuna.Study, facts: Mapping[str, Any]) -> optuna.Trial:
    """Begin a trial that has the facts and this worker from its first moment on."""
    claim = {"claim": uuid.uuid4().hex}
    trial = create_trial(state=TrialState.RUNNING, user_attrs={**facts, **claim, "worker": this_worker()})
    storage.create_new_trial(storage.get_study_id_from_name(study.study_name), trial)
    begun = [each for each in study.get_trials(deepcopy=False) if claim.items() <= each.user_attrs.items()]
    for twin in begun[1:]:  # the database's answer was lost, so the trial was begun again
        study.tell(twin.number, state=TrialState.FAIL)
    return running_trial(storage, study, begun[0].number)


def running_trial(storage: BaseStorage, study: optuna.Study, number: int) -> optuna.Trial:
    """Return a running trial of a study, for a process that did not begin it."""
    of_study = storage.get_study_id_from_name(study.study_name)
    return optuna.Trial(study, storage.get_trial_id_from_study_id_trial_number(of_study, number))
