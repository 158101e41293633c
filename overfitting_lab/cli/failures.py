"""Tell a fault of the command line or the environment from a defect of this project, and put either into words."""

import os
import sys
import traceback
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning_utilities.core.rank_zero import rank_zero_only

from datamodules import DataError
from lightning_modules.errors import ModelError
from overfitting_lab.callbacks.checkpoints import CheckpointError
from overfitting_lab.callbacks.doctor import HopelessError
from overfitting_lab.callbacks.epochs import DivergedError
from overfitting_lab.callbacks.limits import LimitError
from overfitting_lab.callbacks.logger import RunLogger
from overfitting_lab.callbacks.summary import UntrainedError
from overfitting_lab.distributed.meeting import ProcessError
from overfitting_lab.runs import RunError
from overfitting_lab.runs.files import RunFiles
from overfitting_lab.runs.notes import in_words
from overfitting_lab.runs.provenance import command_line
from overfitting_lab.runs.text import ESCAPE

# Their messages name the remedy.
REPORTED = (
    CheckpointError, DataError, DivergedError, HopelessError, LimitError, ModelError, ProcessError, RunError,
    UntrainedError,
)  # fmt: skip
PROJECT = ("benchmarks", "datamodules", "lightning_modules", "overfitting_lab", "__main__")
INSTALLED = ("site-packages", "dist-packages")
# The command line or the environment is their cause wherever they are raised.
ENVIRONMENT_ERRORS = (
    MemoryError, MisconfigurationException, NotImplementedError, OSError, torch.AcceleratorError, torch.OutOfMemoryError
)  # fmt: skip
SAYS_ENVIRONMENT = (
    "can't allocate memory",
    "Too many open files",
    "not implemented for",
    "open shared memory",
)
ELSEWHERE = "give yourself access to it, or name another folder: --output or --trainer.default_root_dir, see --help"
REMEDIES = {
    "allocate": "the memory is too small: try a smaller --data.batch_size, --data.train_size or network",
    "Too many open files": "allow more open files: ulimit -n 4096",
    "Expected more than 1 value per channel": "batch normalization cannot train on a batch of one image: try another "
    "--data.batch_size or --data.train_size, so that the last batch of an epoch has more",
    "No space left on device": "make room on the disk",
    "Read-only file system": ELSEWHERE,
    "Permission denied": ELSEWHERE,
    "not implemented for": "this device cannot compute in this precision: try --trainer.precision 32-true",
}
Place = tuple[str, str, int]  # module, file and line


def is_defect(error: BaseException) -> bool:
    """Return True if the error is this project's own fault.

    The project is at fault if its own code raised the error, directly or through Python's standard library, and
    neither the error's type nor its message points to the environment. Other packages and the user's code work with
    values of the command line, so their errors are not the project's.
    """
    if isinstance(error, ENVIRONMENT_ERRORS) or any(words in str(error) for words in SAYS_ENVIRONMENT):
        return False
    module, *_ = next(_places(error), ("__main__",))
    return module.partition(".")[0] in PROJECT


def explain(error: BaseException) -> str:
    """Return the error in its own words, with the line of the user's own code that raised it, and a remedy."""
    message = in_words(error)
    for module, file, line in _places(error):
        if module.partition(".")[0] not in PROJECT and not any(folder in Path(file).parts for folder in INSTALLED):
            message += f"\nraised in {file}, line {line}"
            break
    return message + "".join(f"\n{remedy}" for words, remedy in REMEDIES.items() if words in str(error))


def keep_trace(error: BaseException, logger: RunLogger | None) -> str:
    """Write the whole trace into the run's folder, and return a line that says where it is."""
    folder = logger.folder_with_files() if logger else None
    if folder is not None:
        rank = rank_zero_only.rank  # type: ignore[attr-defined]
        file = RunFiles(folder).traceback
        file = file.with_stem(f"{file.stem}_{rank}") if rank else file
        when = f"{datetime.now():%Y-%m-%d %H:%M:%S}  {command_line()}\n\n"
        try:
            file.write_text(when + "".join(traceback.format_exception(error)), encoding="utf-8", errors=ESCAPE)
        except OSError:
            pass
        else:
            return f"\nthe whole trace is in {file}"
    return (
        "" if isinstance(error, OSError) else "\nJSONARGPARSE_DEBUG=true in front of the command shows the whole trace"
    )


def wants_trace() -> bool:
    """Return True if the user asked for traces on the screen, with jsonargparse's own variable."""
    return os.environ.get("JSONARGPARSE_DEBUG", "").lower() not in ("", "false")


def _places(error: BaseException) -> Iterator[Place]:
    """Yield the places of the error's trace, innermost first, without the standard library."""
    frames = [(frame.f_globals.get("__name__") or "", frame.f_code.co_filename, line)
              for frame, line in traceback.walk_tb(error.__traceback__)]  # fmt: skip
    for module, file, line in reversed(frames):
        top = module.partition(".")[0]
        if top == "__main__" or top not in sys.stdlib_module_names:
            yield module, file, line
