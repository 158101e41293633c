"""The last message of each process of a run: the first process prints it, or names it as the cause of its own end."""

import os
import sys
import time
from contextlib import suppress
from pathlib import Path

from overfitting_lab.distributed.launchers import FIRST_SPEAKS, parent
from overfitting_lab.distributed.meeting import ProcessError
from overfitting_lab.runs.text import ESCAPE, escaped

# Files with the last message of a process: of one that failed, and of one that failed because of another.
CAUSE, FOLLOWS = ".cause", ".follows"


def say(message: str) -> None:
    """Print the last message of this process, or leave it to the first process if that one started this process."""
    message = escaped(message, keep="\n\t")
    if starter := parent():
        kind = FOLLOWS if isinstance(sys.exc_info()[1], ProcessError) else CAUSE
        with suppress(OSError):  # the first process has ended
            Path(starter[1], os.environ["LOCAL_RANK"] + kind).write_text(message, encoding="utf-8", errors=ESCAPE)
        return
    if os.environ.get("LOCAL_RANK", "0") != "0":
        time.sleep(FIRST_SPEAKS)
    print(message, file=sys.stderr, flush=True)


def last_words(folder: Path, rank: int, kind: str) -> str:
    """Return the last message of a process that the first one started; empty if it left none of this kind."""
    path = folder / f"{rank}{kind}"
    return path.read_text(encoding="utf-8").removeprefix("error: ") if path.is_file() else ""
