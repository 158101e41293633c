"""Loggers that cannot end a run, and callbacks that cannot hide how it ended."""

import time
from collections.abc import Callable
from typing import Any, TypeVar

from lightning.fabric.loggers.logger import _DummyExperiment
from lightning.pytorch import Callback
from lightning.pytorch.loggers import Logger

from overfitting_lab.runs.notes import attempt

CALLS = ("log_metrics", "log_hyperparams", "log_graph", "save", "after_save_checkpoint", "finalize")
PAUSE = 20  # a logger is called again only after this many times the duration of its failed call
T = TypeVar("T", bound=Logger)


def guarded(logger: T) -> T:
    """Let each call of a logger by the Trainer fail with a note instead of an error, and return the logger.

    A server that does not answer costs at most a twentieth of the time. The logger's class is replaced by a subclass,
    and the logger is not wrapped, because callbacks ask for its class and call its other methods. Messages must name
    the class that the user gave, which :func:`given_class` returns.
    """
    kind = type(logger)
    members: dict[str, Any] = {name: _attempted(getattr(kind, name), name) for name in CALLS}
    experiment = getattr(kind, "experiment", None)
    if isinstance(experiment, property) and experiment.fget is not None:
        members["experiment"] = property(_attempted(experiment.fget, "experiment", _DummyExperiment()))
    logger.__class__ = type(f"Guarded{kind.__name__}", (kind,), {"__module__": __name__, **members})
    return logger


def given_class(logger: Logger) -> type[Logger]:
    """Return the class of a logger that may be guarded."""
    kind = type(logger)
    return kind.__base__ if kind.__module__ == __name__ else kind  # type: ignore[return-value]


def with_attempted_exception_hook(callback: Callback) -> Callback:
    """Let a callback's ``on_exception`` fail with a note, so that later callbacks run too. Return the callback."""
    hook = callback.on_exception

    def on_exception(*args: Any) -> None:
        with attempt(f"on_exception of the callback {type(callback).__name__}"):
            hook(*args)

    callback.on_exception = on_exception  # type: ignore[assignment, method-assign]
    return callback


def _attempted(call: Callable[..., Any], name: str, otherwise: Any = None) -> Callable[..., Any]:
    def attempted(logger: Any, *args: Any, **kwargs: Any) -> Any:
        waits = vars(logger).setdefault("_waits_until", 0.0)
        if time.monotonic() < waits and name != "finalize":
            return otherwise
        started = time.monotonic()
        with attempt(f"the logger {given_class(logger).__name__}"):
            return call(logger, *args, **kwargs)
        ended = time.monotonic()
        logger._waits_until = ended + PAUSE * (ended - started)
        return otherwise

    return attempted
