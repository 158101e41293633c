"""Names of files and classes as text that every file, figure, page and screen can show; durations and sizes."""

import codecs
import os
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple
from unicodedata import bidirectional, category, normalize

CONTROLS = {"Cc", "Cs", "Zl", "Zp"}  # categories: control characters, halves of characters, ends of lines
TURNS = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}  # they change the direction of the text


def duration(seconds: float) -> timedelta:
    """Return a duration that prints as ``0:05:02``."""
    return timedelta(seconds=round(seconds))


def space(number: float) -> str:
    """Return a number of bytes in megabytes or, from 1 on, in gigabytes."""
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.3g} MB"


class TimeRange(NamedTuple):
    """The shortest and the longest of several times, in seconds."""

    low: float
    high: float

    def __add__(self, other: "TimeRange") -> "TimeRange":  # type: ignore[override]
        return TimeRange(self.low + other.low, self.high + other.high)

    def times(self, factor: float) -> "TimeRange":
        """Return the range of the time that a multiple of the work takes."""
        return TimeRange(self.low * factor, self.high * factor)

    def __str__(self) -> str:
        low, high = map(duration, self)
        return f"{low}" if low == high else f"{low} to {high}"


def readable(name: str | os.PathLike[str]) -> str:
    r"""Return a file's name or path as text in the normal form NFC.

    The name's bytes are read as UTF-8 in every locale. Bytes that are not UTF-8, and characters that control a terminal
    or the direction of text, become escape sequences such as ``\xe9`` and ``\x1b``.
    """
    return escaped(normalize("NFC", os.fsencode(name).decode(errors="backslashreplace")))


def not_text(path: Path) -> str:
    """Return a sentence if a folder's path is not text, so that YAML, torch and TensorBoard cannot take it."""
    if not any("\ud800" <= character <= "\udfff" for character in str(path)):
        return ""
    return "its name is not text: rename it, or set PYTHONUTF8=1 if the name is UTF-8 and the locale is not"


def escaped(text: str, keep: str = "") -> str:
    """Replace the characters of a text that control a terminal or the direction of text, except those to ``keep``."""
    return text if text.isprintable() else "".join(each if each in keep else _escaped(each) for each in text)


def _escaped(character: str) -> str:
    if category(character) in CONTROLS or bidirectional(character) in TURNS:
        return _byte_or_code(character)
    return character


def _byte_or_code(character: str) -> str:
    r"""Return the escape sequence of a character: ``\xe9`` for a byte of a file's name that is not text."""
    code = ord(character)
    byte = 0xDC80 <= code <= 0xDCFF  # PEP 383
    return f"\\x{code - 0xDC00:02x}" if byte else character.encode("unicode_escape").decode()


def _replace(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_byte_or_code, error.object[error.start : error.end])), error.end


ESCAPE = "overfitting_lab.escape"  # name of an error handler: what an encoding lacks becomes an escape sequence
codecs.register_error(ESCAPE, _replace)
