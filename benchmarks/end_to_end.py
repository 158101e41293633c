"""overfit.yaml from the command to the finished folder, beside the plain loop of the same recipe."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.commands import FIT, run
from benchmarks.measuring import alternate
from overfitting_lab.cli import ExperimentCLI


def measure(arguments: list[str], rounds: int) -> dict[str, Any]:
    """Seconds and peak memory in bytes of both commands, by contender."""
    cli = ExperimentCLI(["--config=overfit", *arguments], keep=False)
    data = cli.datamodule
    data.prepare_data()
    data.setup("fit")
    sizes = {
        "train_size": len(data.train_indices),
        "val_size": len(data.val_indices),
        "batch_size": data.batch_size,
        "epochs": cli.trainer.max_epochs,
    }
    same = [f"--{name}={value}" for name, value in sizes.items()]
    commands = {
        "plain loop": ["-m", "benchmarks.plain_loop", str(data.source.cache.resolve()), *same],
        "fit.py": [FIT, "--config=overfit", *arguments],
    }
    memory: dict[str, int] = {}

    def turn(name: str) -> Callable[[], float]:
        def seconds() -> float:
            with tempfile.TemporaryDirectory() as folder:
                taken, peak = run(commands[name], Path(folder))
            memory[name] = max(memory.get(name, 0), peak)
            return taken

        return seconds

    taken = alternate({name: turn(name) for name in commands}, rounds, warm_up=0)
    return {name: {"seconds": taken[name], "peak_memory": memory[name]} for name in commands}
