"""The real scripts in processes of their own that a test can kill, without seconds of imports for each."""

import multiprocessing
import os
import runpy
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path

ROOT = Path(__file__).parents[1]
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["cli", "torch.utils.tensorboard", "torchvision"])


def _run(name: str, arguments: list[str], folder: Path) -> None:
    import torch

    os.setsid()  # so that a test can kill what the script starts as well
    os.chdir(folder)
    with (folder / "output.txt").open("a") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    torch.set_num_threads(1)
    sys.argv = [f"{name}.py", *arguments]
    runpy.run_path(str(ROOT / "scripts" / f"{name}.py"), run_name="__main__")


def start(name: str, arguments: list[str], folder: Path) -> BaseProcess:
    """Starts a script in ``folder``, where what it prints is added to ``output.txt``."""
    process = _context.Process(target=_run, args=(name, arguments, folder), daemon=False)
    process.start()
    return process
