"""Files that are whole or not there."""

import os
from collections.abc import Callable
from pathlib import Path


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Has a file written beside its place and flushed to the disk, then puts it there: no reader sees half of it.

    Args:
        path: where it is to be.
        write: writes it to the path that it is given.
    """
    new = path.with_name(f".{path.name}.new")
    try:
        write(new)
        with new.open("rb+") as file:
            os.fsync(file.fileno())
        new.replace(path)
    except OSError:
        new.unlink(missing_ok=True)
        raise
