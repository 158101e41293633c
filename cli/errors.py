"""From an exception to a message and an exit status."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from datamodules import DataError
from lightning_modules.errors import ModelError
from reporting.runs import RunError


@contextmanager
def reported_errors() -> Iterator[None]:
    """Turns what a person can act on into one message and exit status 1; a defect of the program keeps its trace."""
    try:
        yield
    except (DataError, ModelError, RunError, MisconfigurationException, PermissionError) as error:
        message = str(error)
    except torch.OutOfMemoryError as error:
        message = f"the GPU's memory does not hold a step: try a smaller --data.batch_size, or more devices\n{error}"
    else:
        return
    print(f"error: {message}", file=sys.stderr)
    sys.exit(1)
