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
from typing import IO, Any

ROOT = Path(__file__).parents[1]
PATHS = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])  # where packages may lie
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["overfitting_lab.cli", "torch.utils.tensorboard", "torchvision"])


def _run(name: str, arguments: list[str]) -> None:
    import torch

    torch.set_num_threads(1)
    sys.argv = [str(ROOT / "scripts" / f"{name}.py"), *arguments]
    runpy.run_path(sys.argv[0], run_name="__main__")


def _call(function: Callable[..., object], arguments: Sequence[Any], folder: Path, environment: Any) -> None:
    os.environ.update({key: str(value) for key, value in environment.items()})
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a script's & ignores
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which nohup ignores
    os.setsid()  # so that a test can kill what the function starts as well
    os.chdir(folder)
    os.environ["PYTHONPATH"] = PATHS  # so that what it starts finds tests.faults
    with (folder / "output.txt").open("a") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    function(*arguments)


def _work(name: str, arguments: list[str]) -> None:
    """Run a script that starts others, and run these others in the same process."""
    from overfitting_lab.cli import finished

    def run(command: list[str], output: IO[str] | None) -> int:
        own, status = sys.argv, 0
        try:
            with contextlib.redirect_stdout(output) if output else contextlib.nullcontext():
                _run(Path(command[1]).stem, command[2:])
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
        finally:
            sys.argv = own
        return status

    finished.run_command = run
    _run(name, arguments)


def start_worker(name: str, arguments: list[str], folder: Path) -> BaseProcess:
    """Start a worker of a study, which trains in its own process, without seconds of imports for each trial."""
    return start_function(_work, (name, arguments), folder)


def start(name: str, arguments: list[str], folder: Path, **environment: object) -> BaseProcess:
    """Start a script in ``folder``, where its output is added to ``output.txt``."""
    return start_function(_run, (name, arguments), folder, **environment)


def start_function(
    function: Callable[..., object], arguments: Sequence[Any], folder: Path, **environment: object
) -> BaseProcess:
    """Start a function of a module in ``folder``, where its output is added to ``output.txt``."""
    process = CONTEXT.Process(target=_call, args=(function, arguments, folder, environment), daemon=False)
    process.start()
    atexit.register(kill_group, process)  # after a failed test, Python would wait for its end
    return process


def run_python(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a Python command that starts other processes, of which none outlives it."""
    environment = {**os.environ, "PYTHONPATH": PATHS, "OMP_NUM_THREADS": "1"}
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


def kill_group(process: BaseProcess) -> None:
    """Kill a process and what it started."""
    if process.pid is not None and process.is_alive():
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:  # it has no session of its own yet
            process.kill()
