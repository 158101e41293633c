"""Patterns such as ``*.png`` in a command line that no shell has expanded."""

import os
from collections.abc import Iterable
from glob import glob, has_magic
from pathlib import Path
from typing import TypeVar

from datamodules.sources.layout import natural

Name = TypeVar("Name", str, Path)


def expand_patterns(names: Iterable[Name]) -> list[Name]:
    """Replace each pattern by the files and folders that it matches; keep a name that exists or matches nothing.

    Shells on Windows leave that to the program.
    """
    expanded: list[Name] = []
    for name in names:
        pattern = str(name)
        is_pattern = has_magic(pattern) and not os.path.lexists(pattern)
        matches = glob(pattern, recursive=True) if is_pattern else []  # noqa: PTH207, Path.glob refuses absolute ones
        expanded += [type(name)(match) for match in sorted(matches, key=natural)] or [name]
    return expanded
