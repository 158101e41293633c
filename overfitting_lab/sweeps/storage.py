"""Studies of Optuna, in a database or a journal file that any number of workers share."""

from pathlib import Path

import optuna
from filelock import FileLock
from optuna.pruners import BasePruner, NopPruner
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.study import StudyDirection

from overfitting_lab.runs import RunError
from overfitting_lab.runs.provenance import without_password

GRACE = 30  # seconds after which the lock of a journal file counts as left behind by a dead worker


def open_storage(folder: Path, place: str | None, lost: str) -> BaseStorage:
    """Open a storage, or create it.

    Args:
        folder: holds the runs of the experiment.
        place: URL of a database, or path of a journal file; by default a journal file in ``folder``.
        lost: says in an error's message what happens if a damaged journal file is moved away.

    Raises:
        RunError: if it cannot be opened or read.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    folder.mkdir(parents=True, exist_ok=True)
    place = place or str(folder / "optuna.journal")
    try:
        with FileLock(folder / ".storage.lock"):  # if two workers start at once, one of them creates the tables
            if "://" in place:
                patient = {"connect_args": {"timeout": 60}} if place.startswith("sqlite") else None  # others write, too
                return RDBStorage(place, engine_kwargs=patient)
            # Optuna's other lock, a symbolic link, is never taken from a dead worker if the path is a relative one.
            return JournalStorage(JournalFileBackend(place, JournalFileOpenLock(place, GRACE)))
    except Exception as error:  # of any driver
        remedy = "give a URL for SQLAlchemy" if "://" in place else f"move it away: {lost}"
        shown = without_password(place)
        raise RunError(f"--storage {shown} cannot be used ({type(error).__name__}); {remedy}") from error


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


def running_trial(storage: BaseStorage, study: optuna.Study, number: int) -> optuna.Trial:
    """Return a running trial of a study, for a process that did not begin it."""
    of_study = storage.get_study_id_from_name(study.study_name)
    return optuna.Trial(study, storage.get_trial_id_from_study_id_trial_number(of_study, number))
