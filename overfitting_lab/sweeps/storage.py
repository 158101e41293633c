"""Where Optuna keeps the trials of a study: a database or a journal file."""

from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

from overfitting_lab.runs import RunError
from overfitting_lab.runs.provenance import without_password

GRACE = 30  # seconds after which the lock of a journal file counts as left behind by a dead worker


def open_storage(place: str, lost: str = "finished runs are found again") -> BaseStorage:
    """Open the storage at a database's URL, or in a journal file.

    An error's message tells with ``lost`` what happens if a damaged journal file is moved away.

    Raises:
        RunError: if it cannot be opened or read.
    """
    try:
        if "://" in place:
            patient = {"connect_args": {"timeout": 60}} if place.startswith("sqlite") else None  # others write, too
            return RDBStorage(place, engine_kwargs=patient)
        # Optuna's other lock, a symbolic link, is never taken from a dead worker if the path is a relative one.
        return JournalStorage(JournalFileBackend(place, JournalFileOpenLock(place, GRACE)))
    except Exception as error:  # of any driver
        remedy = "give a URL for SQLAlchemy" if "://" in place else f"move it away: {lost}"
        shown = without_password(place)
        raise RunError(f"--storage {shown} cannot be used ({type(error).__name__}); {remedy}") from error
