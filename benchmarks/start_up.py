"""From the command to the first step."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from benchmarks.commands import FIT, run
from benchmarks.measuring import Spread, alternate

IMPORT, HELP = "import lightning.pytorch", "fit.py --help"
IMPORT_ALONE, FIRST_STEP = "import lightning.pytorch, left at once", "fit.py to its first step"


class LeaveAtFirstStep(Callback):
    """Ends the process where the first step would begin."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Leaves at once, without any of what a run does at its end."""
        os._exit(0)


def measure(arguments: list[str], rounds: int) -> dict[str, Spread]:
    """Seconds of importing Lightning alone, of ``--help``, and from the command to the first step of overfit.yaml.

    A process that leaves at its first step does not clear up behind itself, which takes a second; so there is a bare
    import that leaves at once too.

    Args:
        arguments: of fit.py, for the data, which is prepared already.
        rounds: turns that count.
    """
    first_step = [f"--trainer.callbacks={__name__}.{LeaveAtFirstStep.__name__}"]
    commands = {
        IMPORT: ["-c", "import lightning.pytorch"],
        HELP: [FIT, "--config=overfit", "--help"],
        IMPORT_ALONE: ["-c", "import os, lightning.pytorch; os._exit(0)"],
        FIRST_STEP: [FIT, "--config=overfit", *arguments, *first_step],
    }

    with tempfile.TemporaryDirectory() as folder:

        def turn(command: list[str]) -> Callable[[], float]:
            return lambda: run(command, Path(folder))[0]

        return alternate({name: turn(command) for name, command in commands.items()}, rounds)
