"""The files of a run: their names, how they are written, and the lock that a training process holds."""

import os
import shlex
import shutil
from collections.abc import Callable, Iterator
from itertools import chain, count
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from overfitting_lab.runs.imports import python_path
from overfitting_lab.runs.text import ESCAPE


class RunError(Exception):
    """A folder is no run, or lacks something. The message names the remedy."""


class UsageError(RunError):
    """The command line asks for what cannot be done. It is reported before any work, with exit status 2."""


def experiments_folder(root: str | None) -> Path:
    """Return the folder of all experiments in a Trainer's ``default_root_dir``; ``None`` is the working directory."""
    return Path(root or ".") / "lightning_logs"


class RunFiles:
    """Name the files of a run in its folder, ``lightning_logs/<experiment>/version_N``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "config.yaml"
        self.summary = folder / "summary.json"
        self.loggers = folder / "loggers.json"
        self.metrics = folder / "metrics.csv"
        self.curves = folder / "curves.png"
        self.weights = folder / "weights.pth"
        self.images = folder / "images.npz"
        self.export = folder / "export"
        self.checkpoints = folder / "checkpoints"
        self.best = self.checkpoints / "best.ckpt"
        self.best_before = self.checkpoints / "best_before.ckpt"
        self.last = self.checkpoints / "last.ckpt"
        self.previous = self.checkpoints / "previous.ckpt"
        self.others = self.checkpoints / "model_checkpoint"  # of Lightning's ModelCheckpoint, if the user gives one
        self.traceback = folder / "traceback.txt"  # of the last failure; process N > 0 writes traceback_N.txt
        self.lock = folder / ".lock"

    @property
    def results(self) -> list[Path]:
        """List the files for people that are there."""
        files = (self.curves, self.summary, self.metrics, self.checkpoints, self.weights)
        return [path for path in files if path.exists()]

    def wait_for_training(self) -> None:
        """Wait until no other process trains the run."""
        wait_for(self.lock, self.folder).release()


def wait_for(path: Path, trained: object) -> BaseFileLock:
    """Return a lock after any other process that holds it, and say if there is one, with what it trains."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"waiting for the process that trains {trained}", flush=True)
        lock.acquire(poll_interval=0.5)
    return lock


def user_path(text: str) -> Path:
    """Return the path that a person names, with ``~`` expanded."""
    return Path(os.path.expanduser(text))  # noqa: PTH111  # unlike Path.expanduser, it needs no home


def resume_command(folder: Path) -> str:
    """Return the command that resumes a run, for a shell."""
    return f"{python_path()}python scripts/fit.py --resume {shlex.quote(str(folder))}"


def new_run_command(config: Path) -> str:
    """Return the command that trains with a configuration, for a shell."""
    return f"{python_path()}python scripts/fit.py --config {shlex.quote(str(config))}"


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Replace a file as a whole: whenever the process or the machine dies, the old file or the new one is there.

    ``write`` writes the new content to the path that it gets, beside the old file. The new file is flushed and renamed.
    What is no file, such as ``/dev/stdout``, is written to, not replaced.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        write(path)
        return
    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)
    try:
        write(new)
        with new.open("rb+") as file:
            os.fsync(file.fileno())
        new.replace(path)
        if os.name == "posix":  # elsewhere a folder cannot be opened
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    finally:
        new.unlink(missing_ok=True)


def link_or_copy(path: Path, new: Path) -> None:
    """Make ``new`` a second name of a file, or a copy if the file system has no such links."""
    try:
        os.link(path, new)
    except OSError:
        shutil.copyfile(path, new)


def numbered(path: Path, ending: str = "") -> Iterator[Path]:
    """Yield ``PATH``, ``PATH-2``, ``PATH-3``, ..., each with the ending, such as ``.png``."""
    for number in chain([""], map("-{}".format, count(2))):
        yield path.with_name(f"{path.name}{number}{ending}")


def unused(path: Path, ending: str = "") -> Path:
    """Return the first of the :func:`numbered` paths at which there is nothing."""
    return next(each for each in numbered(path, ending) if not each.exists())


def write_text(path: Path, text: str) -> None:
    """Replace a text file as a whole, in UTF-8. Bytes of a file's name that are not text become escape sequences."""
    replace_file(path, lambda new: new.write_text(text, encoding="utf-8", errors=ESCAPE))
