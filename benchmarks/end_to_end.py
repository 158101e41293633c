"""Compare overfit.yaml, from the command to the finished folder, with a plain loop of the same recipe."""

import tempfile
from pathlib import Path
from typing import Any

from benchmarks.commands import FIT, run
from benchmarks.contenders import prepared
from benchmarks.measuring import alternate


def measure(arguments: list[str], rounds: int) -> dict[str, Any]:
    """Measure seconds and peak memory in bytes of both commands."""
    cli = prepared(["--config=overfit", *arguments])
    data = cli.datamodule
    sizes = [f"--train_size={len(data.train_indices)}", f"--val_size={len(data.val_indices)}"]
    same = [*sizes, f"--batch_size={data.batch_size}", f"--epochs={cli.trainer.max_epochs}"]
    same.append(f"--device={cli.trainer.strategy.root_device}")
    commands = {
        "plain loop": ["-m", "benchmarks.plain_loop", str(data.source.cache.resolve()), *same],
        "fit.py": [FIT, "--config=overfit", *arguments],
    }
    memory = dict.fromkeys(commands, 0)

    def seconds(name: str) -> float:
        with tempfile.TemporaryDirectory() as folder:
            taken, peak = run(commands[name], Path(folder))
        memory[name] = max(memory[name], peak)
        return taken

    taken = alternate(seconds, commands, rounds, warm_up=0)
    return {name: {"seconds": taken[name], "peak_memory": memory[name]} for name in commands}
