"""Run the real scripts in processes that a test can kill, without seconds of imports for each."""

import atexit
import contextlib
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["overfitting_lab.cli", "torch.utils.tensorboard", "torchvision"])


def _run(name: str, arguments: list[str]) -> None:
    import torch

    torch.set_num_threads(1)
    sys.argv = [str(ROOT / "scripts" / f"{name}.py"), *arguments]
    runpy.run_path(sys.argv[0], run_name="__main__")


def _call(function: Callable[..., object], arguments: Sequence[Any], folder: Path, environment: Any) -> None:
    os.environ.update({key: str(value) for key, value in environment.items()})
    os.setsid()  # so that a test can kill what the function starts as well
    os.chdir(folder)
    os.environ["PYTHONPATH"] = str(ROOT)  # so that what it starts finds tests.faults
    with (folder / "output.txt").open("a") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    function(*arguments)


def start(name: str, arguments: list[str], folder: Path, **environment: object) -> BaseProcess:
    """Start a script in ``folder``, where its output is added to ``output.txt``."""
    return start_function(_run, (name, arguments), folder, **environment)


def start_function(
    function: Callable[..., object], arguments: Sequence[Any], folder: Path, **environment: object
) -> BaseProcess:
    """Start a function of a module in ``folder``, where its output is added to ``output.txt``."""
    process = CONTEXT.Process(target=_call, args=(function, arguments, folder, environment), daemon=False)
    process.start()
    atexit.register(_kill, process)  # after a failed test, Python would wait for its end
    return process


def run_python(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a Python command that starts other processes, of which none outlives it."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    pipes: dict[str, Any] = {"text": True, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    command = (sys.executable, *command)
    with subprocess.Popen(command, cwd=folder, env=environment, start_new_session=True, **pipes) as process:
        try:
            out, err = process.communicate(timeout=240)
        except BaseException:
            process.terminate()  # torchrun ends its processes then; they are not of its group
            try:
                process.communicate(timeout=10)
            finally:
                os.killpg(process.pid, signal.SIGKILL)
            raise
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def _kill(process: BaseProcess) -> None:
    if process.pid is not None and process.is_alive():
        with contextlib.suppress(ProcessLookupError):  # it has no session of its own yet
            os.killpg(process.pid, signal.SIGKILL)
