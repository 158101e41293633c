"""Turn an exception into a message and an exit status."""

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
from overfitting_lab.callbacks.summary import UntrainedError
from overfitting_lab.doctor.callback import HopelessError
from overfitting_lab.runs import RunError

INTERRUPTED, TERMINATED = 130, 143  # a shell's exit status for Ctrl-C and SIGTERM
OURS = (CheckpointError, DataError, DivergedError, HopelessError, ModelError, RunError, UntrainedError)


@contextmanager
def reported_errors() -> Iterator[None]:
    """Turn an error that a person can fix into one message and exit status 1; a bug in the program keeps its trace."""
    try:
        yield
    except StoppedError as error:
        _leave(str(error), error.status)
    except KeyboardInterrupt:
        _leave("interrupted", INTERRUPTED)
    except SIGTERMException:  # outside training, where Recovery handles signals
        _leave("stopped by SIGTERM; resume with --resume RUN", TERMINATED)
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):  # Lightning turns Ctrl-C into exit status 1
            _leave("interrupted", INTERRUPTED)
        raise
    except (*OURS, MisconfigurationException, OSError) as error:
        _leave(f"error: {error}", 1)
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError):
            message = "the GPU's memory cannot hold a step: try a smaller --data.batch_size, or more devices"
        elif type(error).__module__.startswith(("torch._inductor", "torch._dynamo")):
            message = "torch cannot compile the network here: leave --compile out"
        elif isinstance(error, torch.distributed.DistError) or "gloo" in str(error):
            message = "another process of this run is gone; resume with --resume RUN"
        else:
            raise
        reason = str(error).partition("\n")[0]
        _leave(f"error: {message}\n{reason}", 1)


def _leave(message: str, status: int) -> NoReturn:
    print(message, file=sys.stderr, flush=True)
    sys.exit(status)
