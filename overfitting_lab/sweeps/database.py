"""A database that holds studies, and patience while it does not answer."""

import threading
import time
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, RDBStorage, _CachedStorage
from sqlalchemy import exc
from sqlalchemy.engine import make_url
from sqlalchemy.pool import NullPool

from overfitting_lab.runs import RunError
from overfitting_lab.runs.provenance import without_password
from overfitting_lab.runs.text import duration

Result = TypeVar("Result")

PAUSE = 2  # seconds between two attempts
LOCKED = 10  # seconds that an attempt waits for another process to finish its writing, in SQLite
# A server that is gone without a word: seconds until libpq notices, for a new connection and for an old one.
LIBPQ = {"connect_timeout": 10, "keepalives_idle": 20, "keepalives_interval": 5, "keepalives_count": 3}
# Parts of messages of a database that is there and will soon do what it is asked. Tables "already exist" if two
# workers without a folder in common create them at once.
BUSY = ("locked", "starting up", "shutting down", "recovery", "too many", "already exists")
# The last one: Optuna goes on in a transaction that a lost connection has ended.
OUTAGES = (exc.OperationalError, exc.InterfaceError, exc.TimeoutError, exc.PendingRollbackError)
LONGEST = 400  # characters of a driver's message that are shown


class StorageError(RunError):
    """A storage cannot be used, or does not answer. The message has the driver's own reason."""


class PatientStorage(_CachedStorage):
    """Studies in a database. An operation waits while the database is locked, restarts or does not answer.

    An operation whose answer was lost is repeated, so its effect may be there already, or be there twice.

    Args:
        url: URL of the database, for SQLAlchemy.
        patience: seconds until an operation fails. From then on, each is tried once, until one succeeds.
        known: wait for a database that does not answer at the first attempt, too. Its URL cannot be a wrong one.

    Raises:
        StorageError: if the database cannot be used.
    """

    def __init__(self, url: str, patience: float, known: bool) -> None:
        self._shown = f"--storage {without_password(url)}"
        self._patience = patience
        self._known = known
        self._silence = threading.Lock()
        self._silent_since: float | None = None
        self._said = False
        self.answered_again = 0.0  # when the last outage ended, in seconds since the epoch
        super().__init__(self._patiently(self._open, url))
        self._known = True

    def _open(self, url: str) -> RDBStorage:
        try:
            place = make_url(url)
            settings: dict[str, Any] = {}
            if place.get_driver_name().startswith("psycopg"):
                settings = {name: value for name, value in LIBPQ.items() if name not in place.query}
            elif place.get_backend_name() == "sqlite":
                settings = {"timeout": LOCKED}
            in_memory = place.get_backend_name() == "sqlite" and place.database in (None, "", ":memory:")
            # Each operation has its own connection, so that none lasts until the server or a firewall closes it.
            pool = {} if in_memory else {"poolclass": NullPool}
            return RDBStorage(url, {"connect_args": settings, **pool})
        except (exc.ArgumentError, exc.NoSuchModuleError, ValueError) as error:
            reason = f"{error}; " if isinstance(error, exc.NoSuchModuleError) else ""  # others may hold the password
            example = "postgresql+psycopg://USER@HOST/DATABASE or sqlite:///FILE"
            raise StorageError(
                f"{self._shown} cannot be used: {reason}give a URL for SQLAlchemy, such as {example}"
            ) from error
        except ImportError as error:
            remedy = "install this driver (pip install 'psycopg[binary]' for PostgreSQL) or name another in the URL"
            raise StorageError(f"{self._shown} cannot be used: {error.__cause__ or error}; {remedy}") from error
        except (exc.SQLAlchemyError, StorageInternalError):
            raise
        except Exception as error:  # such as tables of another version of Optuna: the message has the remedy
            raise StorageError(f"{self._shown} cannot be used: {error}") from error

    def _patiently(self, operation: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
        while True:
            try:
                result = operation(*args, **kwargs)
            except (exc.SQLAlchemyError, StorageInternalError) as error:
                cause = error.__cause__ if isinstance(error, StorageInternalError) else error
                reason = _reason(cause)
                if not _may_pass(cause, self._known):
                    parts = "path" if self._shown.startswith("--storage sqlite") else "host, port, database and user"
                    raise StorageError(f"{self._shown} cannot be used: {reason}; check its {parts}") from error
                self._wait(reason)
            else:
                self._note_answer()
                return result

    def _wait(self, reason: str) -> None:
        with self._silence:
            now = time.monotonic()
            if self._silent_since is None:
                self._silent_since = now
            silent = now - self._silent_since
            if silent >= self._patience:
                raise StorageError(
                    f"{self._shown} has not answered for {duration(silent)}: {reason}; "
                    "finished runs are kept, so start this again when it answers"
                )
            if silent and not self._said:  # at the second attempt
                self._said = True
                print(f"storage    waits up to {duration(self._patience)} for the database: {reason}", flush=True)
        time.sleep(min(PAUSE, self._patience))

    def _note_answer(self) -> None:
        with self._silence:
            if self._silent_since is None:
                return
            if self._said:
                print(f"storage    answers again, after {duration(time.monotonic() - self._silent_since)}", flush=True)
            self._silent_since, self._said, self.answered_again = None, False, time.time()


def _patient(name: str) -> Callable[..., Any]:
    method = getattr(_CachedStorage, name)

    @wraps(method)
    def patient(self: PatientStorage, *args: Any, **kwargs: Any) -> Any:
        return self._patiently(method, self, *args, **kwargs)

    return patient


for _name in (*sorted(BaseStorage.__abstractmethods__), "get_trial_id_from_study_id_trial_number"):
    setattr(PatientStorage, _name, _patient(_name))


def _may_pass(error: BaseException | None, known: bool) -> bool:
    """Tell if a later attempt may succeed. A database that is not ``known`` must at least say that it is busy."""
    if any(word in str(error) for word in BUSY):
        return True
    lost = isinstance(error, exc.DBAPIError) and error.connection_invalidated
    return known and (lost or isinstance(error, OUTAGES))


def _reason(error: BaseException | None) -> str:
    """Return the driver's message as one line."""
    driver = error.orig if isinstance(error, exc.DBAPIError) else error
    return " ".join(str(driver).split())[:LONGEST]
