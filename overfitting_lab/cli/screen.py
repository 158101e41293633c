"""Keep a command running if its output fails: a closed pipe or terminal, a full disk, a limited encoding."""

import contextlib
import errno
import io
import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from overfitting_lab.runs.notes import note
from overfitting_lab.runs.text import ESCAPE

GONE = (errno.EPIPE, errno.EIO, errno.EBADF)  # no later write can succeed


@contextmanager
def screen(needed: bool) -> Iterator[None]:
    """Print a character that the screen's encoding lacks as an escape sequence.

    Output that standard error cannot write is dropped. So is output that standard output cannot write, unless the
    screen is ``needed``: then the error is raised. The first loss is noted.
    """
    before = sys.stdout, sys.stderr
    sys.stderr = _lasting(sys.stderr, "standard error")
    sys.stdout = _needed(sys.stdout) if needed else _lasting(sys.stdout, "standard output")
    try:
        yield
    finally:
        for stream, original in ((sys.stdout, before[0]), (sys.stderr, before[1])):
            _empty(stream)
            if original is None:
                stream.close()
            else:
                _empty(original)
        sys.stdout, sys.stderr = before


def _empty(stream: TextIO) -> None:
    """Flush a stream, or discard its content, so that Python's own flush at exit does not fail."""
    try:
        stream.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            _discard(stream.fileno())


def _needed(stream: Any) -> TextIO:
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors=ESCAPE)
    return stream or _nowhere()


def _lasting(stream: Any, name: str) -> TextIO:
    if stream is None:  # the process was started without it
        return _nowhere()
    if not hasattr(stream, "buffer"):  # in memory: it cannot fail
        return stream  # type: ignore[no-any-return]
    with contextlib.suppress(OSError, ValueError):
        stream.flush()
    raw = _Lasting(getattr(stream.buffer, "raw", stream.buffer), name)
    buffering = {"line_buffering": stream.line_buffering, "write_through": stream.write_through}
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding=stream.encoding, errors=ESCAPE, **buffering)


def _nowhere() -> TextIO:
    return open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123


class _Lasting(io.RawIOBase):
    """A stream whose writes never fail."""

    def __init__(self, raw: Any, name: str) -> None:
        self._raw = raw
        self._name = name

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return int(self._raw.fileno())

    def isatty(self) -> bool:
        return bool(self._raw.isatty())

    def write(self, data: Any) -> int:
        try:
            while (written := self._raw.write(data)) is None:  # another program made the terminal non-blocking
                select.select([], [self._raw], [])
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno in GONE:
                with contextlib.suppress(OSError):
                    _discard(self.fileno())
            note(self._name, error, show=self._name != "standard error")
            return len(data)
        return int(written)


def _discard(descriptor: int) -> None:
    """Redirect a file descriptor of this process and its children to the null device."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)
