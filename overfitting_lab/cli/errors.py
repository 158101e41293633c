"""From an exception to a message and an exit status."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.exceptions import SIGTERMException

from datamodules import DataError
from lightning_modules.errors import ModelError
from overfitting_lab.callbacks.checkpoints import CheckpointError
from overfitting_lab.callbacks.recovery import DivergedError, StoppedError
from overfitting_lab.doctor.callback import HopelessError
from overfitting_lab.runs import RunError

INTERRUPTED, TERMINATED = 130, 143  # what a shell reports of a process that Ctrl-C or SIGTERM ended


@contextmanager
def reported_errors() -> Iterator[None]:
    """Turns what a person can act on into one message and exit status 1; a defect of the program keeps its trace."""
    try:
        yield
    except StoppedError as error:
        _leave(str(error), error.status)
    except KeyboardInterrupt:
        _leave("interrupted", INTERRUPTED)
    except SIGTERMException:  # outside training, where Recovery heeds signals
        _leave("stopped by SIGTERM; go on with --resume RUN", TERMINATED)
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):  # Lightning turns Ctrl-C into exit status 1
            _leave("interrupted", INTERRUPTED)
        raise
    except (
        CheckpointError,
        DataError,
        DivergedError,
        HopelessError,
        MisconfigurationException,
        ModelError,
        OSError,
        RunError,
    ) as error:
        _leave(f"error: {error}", 1)
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError):
            remedy = "try a smaller --data.batch_size, or more devices"
            _leave(f"error: the GPU's memory does not hold a step: {remedy}\n{error}", 1)
        if type(error).__module__.startswith(("torch._inductor", "torch._dynamo")):
            reason = str(error).splitlines()[0]
            _leave(f"error: torch cannot compile the network here: leave --compile out\n{reason}", 1)
        if isinstance(error, torch.distributed.DistError) or "gloo" in str(error):
            reason = str(error).splitlines()[0]
            _leave(f"error: another process of this run is gone; go on with --resume RUN\n{reason}", 1)
        raise


def _leave(message: str, status: int) -> NoReturn:
    print(message, file=sys.stderr, flush=True)
    sys.exit(status)
