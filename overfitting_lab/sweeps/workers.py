"""Signs of life of the workers that share the trials of a study."""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial

from overfitting_lab.sweeps.database import PatientStorage

HEARTBEAT = 60  # seconds between two signs of life of a worker
GONE = 300  # seconds without a sign of life after which a worker loses its trial


def still_running(number: int, what: str = "trial") -> str:
    """Return a line about trials or runs on other workers."""
    return (
        f"{number} {what}{'s are' if number > 1 else ' is'} running on other workers; "
        "run this command again when they have finished"
    )


def this_worker() -> str:
    """Return the name of this process among all workers."""
    return f"{socket.gethostname()}:{os.getpid()}"


@contextlib.contextmanager
def heartbeat(trial: optuna.Trial) -> Iterator[None]:
    """Show the other workers that this one has the trial and is alive."""
    ended = threading.Event()
    trial.set_user_attr("worker", this_worker())

    def beat() -> None:
        while True:
            with contextlib.suppress(Exception):  # of any storage; the next beat may succeed
                trial.set_user_attr("alive", time.time())
            if ended.wait(HEARTBEAT):
                return

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(HEARTBEAT)  # not forever if the network to a database is gone


def is_gone(trial: FrozenTrial, storage: BaseStorage) -> bool:
    """Tell if a running trial has no worker, or one that has ended or gives no sign of life."""
    host, _, process = trial.user_attrs.get("worker", "").rpartition(":")
    if not process:
        return True
    if os.name == "posix" and host == socket.gethostname():
        try:
            os.kill(int(process), 0)
        except ProcessLookupError:
            return True
        except PermissionError:  # another user's process
            pass
    begun = trial.datetime_start.timestamp() if trial.datetime_start else 0.0
    # While a database did not answer, nobody could give a sign of life.
    answered = storage.answered_again if isinstance(storage, PatientStorage) else 0.0
    return time.time() - max(float(trial.user_attrs.get("alive", begun)), answered) > GONE


def release(trial: optuna.Trial) -> None:
    """Leave a running trial to the next worker."""
    with contextlib.suppress(Exception):  # of any storage; after GONE seconds it counts as left anyway
        trial.set_user_attr("worker", "")
