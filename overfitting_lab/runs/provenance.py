"""Facts that a result must state about its origin."""

import platform
import re
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that can change a result."""
    libraries = ("torch", "torchvision", "lightning", "torchmetrics", "numpy", "pillow")
    return {"python": platform.python_version(), **{name: version(name) for name in libraries}}


def short_commit(commit: str) -> str:
    """Return the first seven digits of a commit, with ``-dirty`` if it has that."""
    return commit[:7] + "-dirty" * commit.endswith("-dirty")


def git_commit() -> str:
    """Return the project's commit, with ``-dirty`` if files differ from it; empty if no repository holds this file."""
    try:
        _git("ls-files", "--error-unmatch", Path(__file__).name)  # fails if it only surrounds the project
        return _git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return ""


def _git(*arguments: str) -> str:
    # In a container, the files often belong to another user, and git refuses them. But their code is running already.
    command = ["git", "-c", "safe.directory=*", *arguments]
    folder = Path(__file__).parent
    return subprocess.check_output(command, cwd=folder, stderr=subprocess.DEVNULL, encoding="utf-8", timeout=10).strip()


def command_line() -> str:
    """Return this process's command, as a shell takes it, without the data's folder and a database's password."""
    shown = [re.sub("^(--data.root)=.*", r"\1=FOLDER", argument) for argument in sys.argv[1:]]
    shown = ["FOLDER" if before == "--data.root" else each for before, each in zip(["", *shown], shown, strict=False)]
    return shlex.join(["python", f"scripts/{Path(sys.argv[0]).name}", *map(without_password, shown)])


def without_password(text: str) -> str:
    """Return a text in which the password of a URL is masked."""
    text = re.sub(r"(://[^:/@\s]*):\S+@", r"\1:PASSWORD@", text)
    return re.sub(r"([?&]password)=[^&\s]+", r"\1=PASSWORD", text)
