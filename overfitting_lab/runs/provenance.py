"""What a result must say of where it came from."""

import platform
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

LIBRARIES = ("torch", "torchvision", "lightning", "torchmetrics", "numpy", "pillow")


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that can change a result."""
    return {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}}


def git_commit() -> str:
    """The project's commit, marked ``-dirty`` where files differ from it; empty outside a git checkout."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return described.stdout.strip()


def command_line() -> str:
    """The command that this process is, for others to read: without the data's folder and a database's password."""
    shown = [re.sub("^(--data.root)=.*", r"\1=FOLDER", argument) for argument in sys.argv[1:]]
    if "--data.root" in shown:
        shown[shown.index("--data.root") + 1] = "FOLDER"
    return " ".join(["python", f"scripts/{Path(sys.argv[0]).name}", *map(masked, shown)])


def masked(text: str) -> str:
    """A text in which a URL's password is not told."""
    return re.sub("(://[^:/@]+):[^@]+@", r"\1:PASSWORD@", text)
