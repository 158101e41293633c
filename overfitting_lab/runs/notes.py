"""Failures of work that a run can do without: a figure, a line on the screen, a logger. They never end the run."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

LINES = 4  # of an exception's message that are shown; the trace has them all
COMPLETE = ("lightning", "overfitting_lab", "datamodules", "lightning_modules")

_notes: dict[str, str] = {}  # of this process, by the work that failed


@contextmanager
def attempt(work: str) -> Iterator[None]:
    """Continue after the block if it fails. Note the first failure of each ``work``, on the screen as well."""
    try:
        yield
    except Exception as error:
        note(work, error)


def note(work: str, error: Exception, *, show: bool = True) -> None:
    """Note the first failure of each ``work``, and print it unless ``show`` is false."""
    if work not in _notes:
        _notes[work] = f"{work}: {in_words(error)}"
        if show:
            print(f"note       {_notes[work]}\n           the run continues without it", file=sys.stderr, flush=True)


def notes() -> list[str]:
    """Return the notes since the command began."""
    return list(_notes.values())


def discard_notes() -> None:
    """Discard the notes of an earlier command in this process."""
    _notes.clear()


def in_words(error: BaseException) -> str:
    """Return the first lines of an exception's message, without the trace of another process.

    The type's name stands before the message. Messages of OSError, Lightning and the project do not need it.
    """
    before, _, trace = str(error).partition("Traceback (most recent call last)")
    lines = [line.rstrip() for line in [*before.splitlines(), *trace.splitlines()[-1:]] if line.strip()]
    message, kind = "\n".join(lines[:LINES]), type(error)
    if message and (isinstance(error, OSError) or kind.__module__.partition(".")[0] in COMPLETE):
        return message
    return f"{kind.__name__}: {message}" if message else kind.__name__
