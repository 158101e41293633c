"""Measure the time from the command to the first step."""

import os
import tempfile
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from benchmarks.commands import FIT, run
from benchmarks.measuring import Spread, alternate


class LeaveAtFirstStep(Callback):
    """Ends the process before the first step."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Exit at once, without any cleanup."""
        os._exit(0)


def measure(arguments: list[str], rounds: int) -> dict[str, Spread]:
    """Measure the seconds to import Lightning, to print ``--help``, and to reach the first step of overfit.yaml.

    A process that exits at its first step skips its cleanup, which takes a second. For a fair comparison, one of the
    imports also skips the cleanup. The data of fit.py's arguments must be prepared already.
    """
    first_step = f"--trainer.callbacks={__name__}.{LeaveAtFirstStep.__name__}"
    commands = {
        "import lightning.pytorch": ["-c", "import lightning.pytorch"],
        "fit.py --help": [FIT, "--config=overfit", "--help"],
        "import lightning.pytorch, left at once": ["-c", "import os, lightning.pytorch; os._exit(0)"],
        "fit.py to its first step": [FIT, "--config=overfit", *arguments, first_step],
    }

    def seconds(name: str) -> float:
        with tempfile.TemporaryDirectory() as folder:
            return run(commands[name], Path(folder))[0]

    return alternate(seconds, commands, rounds)
